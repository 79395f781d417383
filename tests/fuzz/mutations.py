"""Hostile files, made of good ones, and what a reader may do with them: return something, or raise an error of ours.

`HWNAS_FUZZ=2000 pytest tests/fuzz` tries so many examples of everything instead of a few.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError
from hwprof.errors import HwprofError

EXAMPLES = int(os.environ.get("HWNAS_FUZZ", "25"))
# A reader that takes so long is taken to hang; any other takes milliseconds.
_HANGS_SECONDS = 60

fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="HWNAS_FUZZ" not in os.environ,
    # tmp_path is the same for all examples, which replace each other's files
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

_WORDS = (
    "",
    "x" * 10_000,
    "\ud800",
    "\x00",
    "\x1b[31mred\x1b[0m",
    "../../../etc/passwd",
    "/etc/passwd",
    "a\nb",
    "٣",
    "𝟛",
)
_NUMBERS = (0, -1, 1.5, -0.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), -float("inf"), 2**63, 10**400)
# JSON that Python's writer would not give: too deep, too long, a number that overflows
_RAW = (
    "[" * 100_000,
    "[" * 3000 + "]" * 3000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "9" * 5000,
    "1e999",
    "-1e-999",
    "'x'",
)
_MARK = "@raw{}@"
_AGAIN = "@again@"  # before a key: the same key once more

scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(_NUMBERS), st.sampled_from(_WORDS))
hostile = st.one_of(
    scalars,
    st.sampled_from([_MARK.format(number) for number in range(len(_RAW))]),
    st.sampled_from([[], {}, [[]], [None], {"": None}]),
    st.text(max_size=20),
    st.integers(),
    st.floats(),
)


@st.composite
def changed_values(draw: st.DrawFn, values: Any) -> Any:
    """The same JSON value with one to three places changed: left out, given twice, renamed, moved, replaced."""
    values = json.loads(json.dumps(values))
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(list(_places(values)) or [(None,)]))
        if key is None:
            return copy.deepcopy(draw(hostile))
        owner = values
        for step in path:
            owner = owner[step]
        change = draw(st.sampled_from(["replace", "replace", "replace", "drop", "twice", "rename", "wrap", "move"]))
        if change == "drop":
            del owner[key]
        elif change == "twice" and isinstance(owner, list):
            owner.insert(key, owner[key])
        elif change == "twice":
            owner[_AGAIN + key] = copy.deepcopy(draw(st.one_of(st.just(owner[key]), hostile)))
        elif change == "rename" and isinstance(owner, dict):
            owner[draw(st.one_of(st.text(max_size=10), st.sampled_from(_WORDS)))] = owner.pop(key)
        elif change == "wrap":
            owner[key] = [owner[key]]
        elif change == "move":
            owner[key] = copy.deepcopy(draw(st.sampled_from(list(_held(values)))))
        else:
            owner[key] = copy.deepcopy(draw(hostile))
    return values


def as_json(values: Any) -> str:
    """JSON text, with what no writer of JSON would write."""
    text = json.dumps(values).replace(_AGAIN, "")
    for number, raw in enumerate(_RAW):
        text = text.replace(f'"{_MARK.format(number)}"', raw)
    return text


def _places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _held(values: Any) -> Iterator[Any]:
    yield values
    for value in values.values() if isinstance(values, dict) else values if isinstance(values, list) else ():
        yield from _held(value)


def json_like(text: str) -> st.SearchStrategy[str]:
    """JSON texts that are almost the given one, and texts that are no longer JSON."""
    values = json.loads(text)
    return st.one_of(changed_values(values).map(as_json), changed_values(values).map(as_json), text_like(text))


@st.composite
def text_like(draw: st.DrawFn, text: str) -> str:
    """The text cut off, with a part left out, given twice or replaced; or any text at all."""
    kind = draw(st.sampled_from(["cut", "drop", "twice", "replace", "replace", "number", "line", "any"]))
    if kind == "any":
        return draw(st.one_of(st.text(max_size=200), st.sampled_from([*_WORDS, *_RAW])))
    start = draw(st.integers(0, len(text)))
    end = min(len(text), start + draw(st.integers(0, 40)))
    if kind == "cut":
        return text[:start]
    if kind == "drop":
        return text[:start] + text[end:]
    if kind == "twice":
        return text[:end] + text[start:end] + text[end:]
    if kind == "line":
        lines = text.splitlines(keepends=True) or [""]
        line = draw(st.integers(0, len(lines) - 1))
        other = draw(st.sampled_from(lines))
        return "".join([*lines[:line], other, *lines[line + draw(st.integers(0, 1)) :]])
    if kind == "number":
        return _with_number(
            text, start, draw(st.sampled_from([*map(repr, _NUMBERS), "9" * 5000, "1e999", "0x10", "٣"]))
        )
    return text[:start] + draw(st.one_of(st.text(max_size=10), st.sampled_from([*_WORDS, *_RAW]))) + text[end:]


def _with_number(text: str, start: int, number: str) -> str:
    """The first number behind a place replaced."""
    begin = next((place for place in range(start, len(text)) if text[place].isdigit()), len(text))
    end = next((place for place in range(begin, len(text)) if text[place] not in "0123456789.eE+-"), len(text))
    return text[:begin] + number + text[end:]


@st.composite
def bytes_like(draw: st.DrawFn, data: bytes) -> bytes:
    """The bytes cut off, with some flipped, left out, given twice or replaced; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(changed)))
        end = min(len(changed), start + draw(st.integers(1, 40)))
        kind = draw(st.sampled_from(["cut", "flip", "flip", "drop", "twice", "replace", "extreme"]))
        if kind == "cut":
            del changed[start:]
        elif kind == "flip" and start < len(changed):
            changed[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "drop":
            del changed[start:end]
        elif kind == "twice":
            changed[end:end] = changed[start:end]
        elif kind == "replace":
            changed[start:end] = draw(st.binary(max_size=20))
        else:
            changed[start:end] = draw(st.sampled_from([b"\xff", b"\x00", b"\x7f"])) * (end - start)
    return bytes(changed)


_watched: list[tuple[str, str]] | None = None
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod"}
_PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.connect"}


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = set(mode or "") & set("wax+") or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
        if writes and isinstance(path, str | bytes | os.PathLike):
            _watched.append((event, os.fsdecode(path)))
    elif event in _CHANGES:
        _watched.extend((event, os.fsdecode(path)) for path in arguments[:2] if isinstance(path, str | os.PathLike))
    elif event in _PROCESSES or event == "pickle.find_class":
        _watched.append((event, str(arguments)))


sys.addaudithook(_audit)


@contextlib.contextmanager
def harmless(folder: Path | None = None) -> Iterator[None]:
    """Fails if what is done here writes anywhere but in a folder, starts a process, connects, unpickles or hangs."""
    global _watched

    def hangs(*_: object) -> None:
        raise AssertionError(f"it takes more than {_HANGS_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(_HANGS_SECONDS)
    _watched = found = []
    try:
        yield
    finally:
        _watched = None
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    outside = [one for one in found if one[0] in _PROCESSES or not _is_below(one[1], folder)]
    assert outside == [], f"it did more than read: {outside}"


def _is_below(path: str, folder: Path | None) -> bool:
    return folder is not None and Path(path).resolve().is_relative_to(folder.resolve())


def refused(read: Callable[[], object], folder: Path | None = None) -> str | None:
    """None, or the message of the error of ours with which a reader refused; any other error is let through."""
    message = None
    with harmless(folder):
        try:
            read()
        except (HwnasError, HwprofError) as error:
            message = str(error)
    assert message is None or message.strip(), "an error that says nothing"
    return message
