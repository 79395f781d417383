"""Cards as files: what is written is read, and what is no card is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cards import make_card, make_layer

from hwnas.card import LARGEST_BYTES, MOST_ANCESTORS, Ancestor, Card, read_card
from hwnas.errors import RunError
from hwnas.printable import printable


def test_a_card_comes_back(tmp_path: Path) -> None:
    card = make_card()
    path = tmp_path / "net.onnx.json"
    path.write_text(card.to_json(), encoding="utf-8")
    assert read_card(path) == card
    assert card.accuracy == 91.5


def test_what_formats_add_is_passed_over_and_accuracy_may_be_by_split() -> None:
    values = {**make_card().facts(), "largest_batch": 8, "accuracy_percent": {"valid": 90.0, "test": 91.0}}
    card = Card.from_json(json.dumps(values))
    assert (card.accuracy, card.measured_ms, card.file) == (91.0, None, None)
    assert Card.from_json(json.dumps({**values, "accuracy_percent": {}})).accuracy is None


def test_facts_are_what_holds_of_every_file() -> None:
    facts = make_card().facts()
    assert not {"file", "sha256", "measured_ms", "accuracy_percent"} & set(facts)
    assert facts["layers"][0]["inputs"] == [[3, 32, 32]]


def changed(**changes: Any) -> Callable[[], str]:
    def text() -> str:
        return json.dumps({**json.loads(make_card().to_json()), **changes})

    return text


def changed_layer(**changes: Any) -> Callable[[], str]:
    return lambda: make_card_text(layers=[{**json.loads(make_card().to_json())["layers"][0], **changes}])


def make_card_text(**changes: Any) -> str:
    return changed(**changes)()


def without(key: str) -> Callable[[], str]:
    return lambda: json.dumps({name: value for name, value in json.loads(make_card().to_json()).items() if name != key})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (lambda: "[]", "the whole text"),
        (lambda: '{"version": ' * 2000, "the whole text"),
        (without("recipe"), "recipe: Field required"),
        (changed(arch="../../etc"), "arch: String should match"),
        (changed(arch="9" * 5000), "arch"),
        (changed(macs=10**400), "macs"),
        (changed(measured_ms=-1.0), "measured_ms"),
        (changed(accuracy_percent=float("nan")), "accuracy_percent"),
        (changed(space={"name": float("inf")}), "space"),
        (changed_layer(share=1.5), "layers.0.share"),
        (changed_layer(output=[-1, 8, 8]), "layers.0.output.0"),
        (changed_layer(note="x"), "layers.0.note"),
    ],
)
def test_what_is_no_card_is_said(text: Callable[[], str], why: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx.json"
    path.write_text(text(), encoding="utf-8")
    with pytest.raises(RunError, match=rf"net\.onnx\.json cannot be used: .*{why}"):
        read_card(path)


def test_an_endless_family_is_none() -> None:
    training = replace(make_card().training, lineage=tuple(Ancestor(f"{n}", None, None) for n in range(MOST_ANCESTORS)))
    assert make_card(training=training).to_json()
    with pytest.raises(RunError, match=r"training\.lineage"):
        make_card(training=replace(training, lineage=(*training.lineage, Ancestor("0", None, None)))).to_json()


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a card.*No such file"):
        read_card(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="is not a card"):
        read_card(tmp_path / "binary.json")
    (tmp_path / "large.json").write_text(" " * (LARGEST_BYTES + 1))
    with pytest.raises(RunError, match="longer than"):
        read_card(tmp_path / "large.json")


def test_a_strangers_text_does_not_move_the_cursor(tmp_path: Path) -> None:
    layer = {**json.loads(make_card(layers=(make_layer(0),)).to_json())["layers"][0], "\x1b[2J": 1}
    (tmp_path / "card.json").write_text(make_card_text(layers=[layer]))
    with pytest.raises(RunError) as caught:
        read_card(tmp_path / "card.json")
    assert "\x1b" not in str(caught.value)
    assert "\ufffd[2J" in str(caught.value)
    assert printable("é\nµ\u202e\x07") == "é\nµ\ufffd\ufffd"
