"""Cards of networks, which travel with exported files: what is read of one, its page, and the recipe made of it."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from made_cards import make_card
from mutations import bytes_like, fuzz, json_like, refused

from hwnas.card import Card, read_card
from hwnas.card_recipe import Given, recipe_of
from hwnas.report.card import card_page

CARD = make_card(recipe='name = "toy"\n[train]\nepochs = 2\n')
TEXT = CARD.to_json()
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def use(card: Card, folder: Path) -> None:
    page = card_page(card, "net.onnx.html")
    assert not CONTROL.search(page)
    recipe, notes = recipe_of(card, folder, Given())
    assert recipe.folder.parent == folder
    assert not any(map(CONTROL.search, notes))


def test_a_good_card_is_used(tmp_path: Path) -> None:
    use(Card.from_json(TEXT), tmp_path)


@fuzz
@given(text=json_like(TEXT))
def test_a_card(text: str, tmp_path: Path) -> None:
    refused(lambda: use(Card.from_json(text), tmp_path), tmp_path)


@fuzz
@given(data=st.one_of(bytes_like(TEXT.encode()), json_like(TEXT).map(lambda text: text.encode(errors="replace"))))
def test_the_file_of_a_card(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx.json").write_bytes(data)
    said = refused(lambda: read_card(tmp_path / "net.onnx.json"))
    assert said is None or not CONTROL.search(said)
