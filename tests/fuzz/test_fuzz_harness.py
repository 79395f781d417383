"""The harness sees what a careless reader does: each of these would let a hostile file do harm."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import find, settings
from mutations import bytes_like, harmless, json_like, refused, text_like

from hwprof.errors import TableError


@pytest.mark.parametrize(
    ("careless", "seen"),
    [
        (lambda folder: (folder / "outside").write_text("x"), "open.*outside"),
        (lambda folder: (folder / "made").mkdir(), "os.mkdir.*made"),
        (lambda folder: (folder / "there").unlink(), "os.remove.*there"),
        (lambda folder: (folder / "there").rename(folder / "inside" / "x"), "os.rename.*there"),
        (lambda folder: subprocess.run([sys.executable, "-c", ""], check=True), "subprocess.Popen"),
        (lambda folder: pickle.load(io.BytesIO(pickle.dumps(OrderedDict()))), "pickle.find_class"),
    ],
)
def test_what_a_careless_reader_does_is_seen(careless: Callable[[Path], object], seen: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "there").write_text("x")
    with pytest.raises(AssertionError, match=f"it did more than read: .*{seen}"), harmless(tmp_path / "inside"):
        careless(tmp_path)


def test_what_a_reader_may_do_is_let_pass(tmp_path: Path) -> None:
    with harmless(tmp_path):
        (tmp_path / "x").write_text("x")
        assert (tmp_path / "x").read_text() == Path(tmp_path / "x").read_bytes().decode()
    with harmless():
        assert (tmp_path / "x").exists()


def raises(error: Exception) -> Callable[[], object]:
    def read() -> object:
        raise error

    return read


def test_only_errors_of_ours_that_say_something_are_refusals() -> None:
    assert refused(raises(TableError("no table"))) == "no table"
    assert refused(lambda: 3) is None
    with pytest.raises(KeyError):
        refused(raises(KeyError("rows")))
    with pytest.raises(AssertionError, match="says nothing"):
        refused(raises(TableError(" ")))


TEXT = json.dumps({"rows": {"a": 1.5, "b": [1, 2]}, "name": "x"})
ENOUGH = settings(max_examples=5000, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(
    "wanted",
    [
        lambda text: "NaN" in text,
        lambda text: "[" * 1000 in text and len(text) < 20_000,
        lambda text: text.count('"rows": ') == 2,
        lambda text: "9" * 5000 in text,
        lambda text: r"\ud800" in text,
        lambda text: '"rows"' not in text and text.startswith("{"),
        lambda text: text == TEXT[: len(text)] and 0 < len(text) < len(TEXT),
    ],
    ids=["NaN", "deep", "twice", "digits", "surrogate", "dropped", "cut"],
)
def test_hostile_values_are_among_what_is_tried(wanted: Callable[[str], bool]) -> None:
    assert wanted(find(json_like(TEXT), wanted, settings=ENOUGH))


def test_bytes_and_texts_are_changed() -> None:
    assert find(bytes_like(b"hello"), lambda data: len(data) == 5 and data != b"hello", settings=ENOUGH)
    assert find(text_like("a = 1\nb = 2\n"), lambda text: text.count("a = 1\n") == 2, settings=ENOUGH)
