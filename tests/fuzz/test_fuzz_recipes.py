"""Recipes, which people send each other, and the space that one describes."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from mutations import bytes_like, fuzz, refused, text_like

from hwnas.recipe import changed_keys, load_recipe, parse_recipe
from hwnas.template import TEMPLATE

TEXT = TEMPLATE.format(path="toy.toml", name="toy")
# One key a line, each changed by itself: what is behind the parser is reached.
VALUES = (
    "1", "0", "-1", "1.5", "nan", "-inf", "true", '""', '"x"', "[]", "[1, 'a']", "{}", "{a = {b = [1]}}", "9" * 5000,
    "1e999", '"' + "x" * 10_000 + '"', '"../../x"', '"\\u0000\\u001b[31m"', "1979-05-27", '"1e999 ms"', '"1 parsec"',
    "[" * 2000 + "]" * 2000, '"NaN ms"', "0x7fffffffffffffffffff", '["local", 3]',
)  # fmt: skip


@st.composite
def changed_line(draw: st.DrawFn) -> str:
    lines = [line.removeprefix("# ") if " = " in line else line for line in TEXT.splitlines()]
    number = draw(st.sampled_from([number for number, line in enumerate(lines) if " = " in line]))
    key = lines[number].partition(" = ")[0]
    lines[number] = f"{key} = {draw(st.one_of(st.sampled_from(VALUES), st.text(max_size=5).map(json.dumps)))}"
    kept = TEXT.splitlines()
    return "\n".join([*kept[:number], lines[number], *kept[number + 1 :]])


def parse(text: str) -> None:
    recipe = parse_recipe(text)
    assert changed_keys(recipe, recipe) == []
    assert recipe.folder.parent == Path(recipe.runs)
    assert "/" not in recipe.target.target().slug()


def test_a_good_recipe_is_read() -> None:
    parse(TEXT)


@fuzz
@given(text=st.one_of(text_like(TEXT), changed_line(), changed_line()))
def test_a_recipe(text: str) -> None:
    refused(lambda: parse(text))


@fuzz
@given(data=bytes_like(TEXT.encode()))
def test_the_file_of_a_recipe(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_bytes(data)
    refused(lambda: load_recipe(tmp_path / "toy.toml"))
