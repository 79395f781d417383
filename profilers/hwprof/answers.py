"""What an agent may answer. A device is not trusted: whatever is not exactly this is Nonsense, and nothing is guessed.

Times are relative to the anchors' geometric mean (see hwprof.timing).
"""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from hwprof import errors
from hwprof.errors import HwprofError

# Characters of a message; the outputs of a large model are the longest.
MAX_LINE = 32 * 2**20
# Characters of a text and of a fact, and the number of facts.
MAX_TEXT = 4000
MAX_FACT = 300
MAX_FACTS = 200
# Beyond it, integers are no longer exact as floating point numbers; no time or count is anywhere near.
MAX_NUMBER = 2**53

Value = TypeVar("Value")
Message = dict[str, Any]


class Nonsense(Exception):
    """An answer that no agent of ours gives; whoever knows the device makes a DeviceError of it."""


@dataclass(frozen=True)
class Result:
    """What the agent measured of one model. Where it is refused, errors and spread may be infinite."""

    name: str
    ratio: float
    standard_error: float
    spread: float
    ratios: tuple[float, ...]
    wall_ms: float
    interrupted: float
    refused: str | None
    nodes: tuple[tuple[str, float], ...] | None


@dataclass(frozen=True)
class Group:
    """A measured group: its results, and the state of the machine while it ran."""

    results: tuple[Result, ...]
    anchor_ms: tuple[float, ...]
    anchors: dict[str, tuple[float, ...]]
    drift: float
    seconds: float
    stolen_seconds: float
    involuntary_switches: int
    state: dict[str, str]


@dataclass(frozen=True)
class Output:
    """An array that a model computed on the device: its shape and its numbers, float32, little-endian, row-major."""

    shape: tuple[int, ...]
    data: bytes


def parse(line: str) -> Message:
    """The message of a line: a JSON object with the text "event"."""
    try:
        message = json.loads(line, parse_constant=_constant, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise Nonsense(f"it is no JSON ({error})") from error
    if not isinstance(message, dict) or not isinstance(message.get("event"), str):
        raise Nonsense("it is no JSON object with an event")
    return message


def read_ready(message: Message) -> dict[str, dict[str, str]]:
    """Facts of the machine under "identity", "state" and "versions"."""
    _require_event(message, "ready")
    ready = {name: _facts(message.get(name)) for name in ("identity", "state", "versions")}
    for name in ("cpu", "cores"):
        _require(name in ready["identity"], f"the machine's {name} is missing")
    return ready


def read_error(message: Message) -> HwprofError:
    """The error that the agent met, of the class that it names if that is one of ours."""
    kind = getattr(errors, str(message.get("kind")), None)
    known = isinstance(kind, type) and issubclass(kind, HwprofError)
    text = _text(message.get("message"))
    return kind(text) if known else HwprofError(text)  # type: ignore[misc]


def read_count(message: Message, most: int) -> int:
    """How many sweeps, or files, are done."""
    return int(_number(message.get("done"), least=1, most=most, whole=True))


def read_holder(message: Message) -> str:
    """Who measures on the machine, so that the agent waits."""
    return _text(message.get("holder"))


def read_slower(message: Message) -> float:
    """How much longer than when it was cool the device takes for the anchors, as a fraction."""
    return _number(message.get("slower"), least=0.0, most=MAX_NUMBER)


def read_result(message: Message, models: Collection[str]) -> Result:
    """The result of one of the models that were asked for."""
    name = message.get("name")
    if not isinstance(name, str) or name not in models:
        raise Nonsense(f"no model {str(name)[:100]!r} is still to be measured")
    refused = None if message.get("refused") is None else _text(message.get("refused"))
    most = math.inf if refused else MAX_NUMBER
    result = Result(
        name=name,
        ratio=_number(message.get("ratio"), least=0.0),
        standard_error=_number(message.get("standard_error"), least=0.0, most=most),
        spread=_number(message.get("spread"), least=0.0, most=most),
        ratios=_numbers(message.get("ratios")),
        wall_ms=_number(message.get("wall_ms"), least=0.0),
        interrupted=_number(message.get("interrupted"), least=0.0, most=1.0),
        refused=refused,
        nodes=None if message.get("nodes") is None else _tuple(message.get("nodes"), _node),
    )
    _require(refused is not None or result.ratio > 0, "a time of zero is not refused")
    return result


def read_group(message: Message, results: tuple[Result, ...], anchors: Collection[str]) -> Group:
    """The end of a group of which the results are known."""
    times = _dictionary(message.get("anchors"), _numbers)
    _require(set(times) == set(anchors), f"the anchors are {sorted(times)[:9]}, not those that were asked for")
    group = Group(
        results=results,
        anchor_ms=_numbers(message.get("anchor_ms")),
        anchors=times,
        drift=_number(message.get("drift"), least=0.0, most=math.inf),
        seconds=_number(message.get("seconds"), least=0.0),
        stolen_seconds=_number(message.get("stolen_seconds")),
        involuntary_switches=int(_number(message.get("involuntary_switches"), whole=True)),
        state=_facts(message.get("state")),
    )
    lengths = {len(group.anchor_ms), *map(len, times.values()), *(len(result.ratios) for result in results)}
    _require(len(lengths) == 1, "not every model and anchor has a time in every sweep")
    _require(
        math.isfinite(group.drift) or all(result.refused is not None for result in results),
        "a result beside anchors of time zero is not refused",
    )
    return group


def read_recorded(record: Message) -> Group:
    """A group as a journal keeps it: its fields, with its results among them."""
    results = _tuple(record.get("results"), lambda result: _dictionary(result, lambda field: field))
    names = [_text(result.get("name")) for result in results]
    _require(len(set(names)) == len(names), "a model is there twice")
    read = tuple(read_result(result, [name]) for result, name in zip(results, names, strict=True))
    anchors = record.get("anchors")
    return read_group(record, read, anchors if isinstance(anchors, dict) else ())


def read_outputs(message: Message) -> list[Output]:
    """The arrays that a model computed."""
    _require_event(message, "outputs")
    return list(_tuple(message.get("outputs"), _output))


def plain(text: str, most: int = MAX_TEXT) -> str:
    """A text that may be shown in a terminal: no control characters, not too long."""
    return "".join(char if char.isprintable() or char in "\n\t" else "?" for char in text[:most])


def _number(value: object, least: float = -MAX_NUMBER, most: float = MAX_NUMBER, *, whole: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise Nonsense(f"{str(value)[:100]!r} is not a {'whole ' if whole else ''}number")
    finite = abs(value) <= sys.float_info.max or value == math.inf  # a whole number can be too large to be a float
    _require(finite and least <= value <= most, f"{str(value)[:100]} is not between {least:g} and {most:g}")
    return float(value)


def _numbers(value: object) -> tuple[float, ...]:
    return _tuple(value, lambda number: _number(number, least=0.0))


def _text(value: object, most: int = MAX_TEXT) -> str:
    if not isinstance(value, str):
        raise Nonsense(f"{str(value)[:100]!r} is not a text")
    return plain(value, most)


def _facts(value: object) -> dict[str, str]:
    facts = _dictionary(value, lambda fact: _text(fact, MAX_FACT))
    _require(len(facts) <= MAX_FACTS, f"there are more than {MAX_FACTS} facts")
    return facts


def _node(value: object) -> tuple[str, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise Nonsense("a node has a name and a time")
    return _text(value[0]), _number(value[1], least=0.0)


def _output(value: object) -> Output:
    fields = _dictionary(value, lambda field: field)
    shape = _tuple(fields.get("shape"), lambda extent: int(_number(extent, least=0, most=MAX_LINE, whole=True)))
    encoded = fields.get("float32")
    if not isinstance(encoded, str):
        raise Nonsense("an output has no numbers")
    try:
        data = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise Nonsense(f"an output is not base64 ({error})") from error
    _require(len(data) == 4 * math.prod(shape), f"{len(data)} bytes are sent for the shape {shape}")
    return Output(shape, data)


def _dictionary(value: object, item: Callable[[object], Value]) -> dict[str, Value]:
    if not isinstance(value, dict):
        raise Nonsense(f"{str(value)[:100]!r} is not a dictionary")
    return {plain(name, MAX_FACT): item(entry) for name, entry in value.items()}


def _tuple(value: object, item: Callable[[object], Value]) -> tuple[Value, ...]:
    if not isinstance(value, list):
        raise Nonsense(f"{str(value)[:100]!r} is not a list")
    return tuple(map(item, value))


def _require_event(message: Message, event: str) -> None:
    _require(message["event"] == event, f"{message['event'][:100]!r} came instead of {event}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Nonsense(otherwise)


def _constant(name: str) -> float:
    _require(name == "Infinity", f"{name} is not a number")
    return math.inf


def _integer(digits: str) -> int:
    _require(len(digits) < 30, "a number has too many digits")
    return int(digits)
