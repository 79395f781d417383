from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hwprof import table as table_module
from hwprof.errors import TableError
from hwprof.table import LatencyTable, Model, Row, Validation, dump_table, load_table, read_table, write_table
from hwprof.target import Target

TABLE = LatencyTable(
    target=Target(),
    fingerprint={"cpu": "A processor", "onnxruntime": "1.20.0"},
    provenance={"command": "hwnas profile", "state": {"load": "0.10"}, "refused": 0},
    intercept_ms=-0.0123,
    models=(
        Model("0-1", "anchor", 1.25, 0.01),
        Model("1-1", "fit", 1.5, 0.01),
        Model("1-0", "held-out", 1.75, 0.02, again_ms=1.76),
    ),
    validation=Validation(1, 0.019, 0.031, 0.012),
    rows={"conv 3x3": Row(0.5, 0.01, 4), "head": Row(0.125, 0.02, 1), "mb 5": Row(2.5, 0.1, 0, "estimated")},
)
TEXT = dump_table(TABLE)


def sealed(change: Callable[[dict[str, Any]], None]) -> str:
    """The table's text with its values changed and a checksum that holds: damage that only the values show."""
    values = json.loads(TEXT)
    change(values)
    del values["checksum"]
    body = json.dumps(values)
    return table_module._sealed(body[1:-1]) + "\n"


def setting(*path: str | int, value: Any) -> str:
    def change(values: dict[str, Any]) -> None:
        place: Any = values
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return sealed(change)


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "deep" / "table.json")
    assert read_table(tmp_path / "deep" / "table.json") == TABLE
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["table.json"]


rows = st.builds(
    Row, ms=st.floats(1e-6, 1e6), spread=st.floats(0, 10), count=st.integers(0, 99), origin=st.just("measured")
)


names = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs")))


@given(st.dictionaries(names, rows, max_size=5), st.floats(-10, 10))
def test_rows_keep_six_digits_and_the_intercept_all(rows: dict[str, Row], intercept: float) -> None:
    once = load_table(dump_table(replace(TABLE, rows=rows, intercept_ms=intercept)))
    assert once.intercept_ms == intercept
    assert once.rows.keys() == rows.keys()
    for key, row in rows.items():
        assert once.rows[key].ms == pytest.approx(row.ms, rel=5e-6)
        assert once.rows[key].count == row.count
    assert load_table(dump_table(once)) == once


def test_one_changed_row_changes_one_line_and_the_checksum() -> None:
    other = dump_table(replace(TABLE, rows={**TABLE.rows, "head": Row(0.126, 0.02, 1)}))
    changed = [new for old, new in zip(TEXT.splitlines(), other.splitlines(), strict=True) if old != new]
    assert len(changed) == 2
    assert '"head"' in changed[0]
    assert '"checksum"' in changed[1]


def test_the_order_of_the_rows_does_not_matter() -> None:
    assert dump_table(replace(TABLE, rows=dict(reversed(TABLE.rows.items())))) == TEXT


def test_line_ends_of_another_system_are_read(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert read_table(path) == TABLE


@pytest.mark.parametrize("tenth", range(10))
def test_a_truncated_table_is_refused(tenth: int) -> None:
    with pytest.raises(TableError, match="some table"):
        load_table(TEXT[: len(TEXT) * tenth // 10], "some table")


@pytest.mark.parametrize("place", [index for index, character in enumerate(TEXT) if character.isdigit()])
def test_any_flipped_digit_is_refused(place: int) -> None:
    flipped = TEXT[:place] + str((int(TEXT[place]) + 1) % 10) + TEXT[place + 1 :]
    with pytest.raises(TableError, match=r"changed or damaged|schema|not a latency table"):
        load_table(flipped)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "truncated or not a latency table", id="empty"),
        pytest.param("latency: 3", "truncated or not a latency table", id="not JSON"),
        pytest.param("[]", 'it has no "schema"', id="a list"),
        pytest.param("3", 'it has no "schema"', id="a number"),
        pytest.param("{}", 'it has no "schema"', id="nothing in it"),
        pytest.param("[" * 100_000, "truncated or not a latency table", id="deeply nested"),
        pytest.param('{"a":' * 100_000, "truncated or not a latency table", id="deeply nested objects"),
        pytest.param("9" * 5000, "not a latency table", id="a huge number"),
        pytest.param("\ufeff" + TEXT, "truncated or not a latency table", id="byte order mark"),
        pytest.param(setting("schema", value="other"), 'it has no "schema"', id="wrong schema"),
        pytest.param(setting("version", value=4), "schema version 4, this hwprof reads 1, 2, 3", id="future version"),
        pytest.param(TEXT.replace(" 0.5,", " 0.6,"), "checksum does not hold", id="edited by hand"),
        pytest.param(TEXT.replace("A processor", "\ud800"), "checksum does not hold", id="half a character"),
        pytest.param(TEXT.replace('"\n}', '",\n "note": 1\n}'), "checksum does not hold", id="added behind"),
        pytest.param(TEXT + "}", "not a latency table|checksum", id="text behind"),
        pytest.param(
            TEXT.replace('  "head"', '  "head": {"ms": 1.0, "spread": 0.0, "count": 1},\n  "head"'),
            "holds 'head' twice",
            id="a row twice",
        ),
        pytest.param(setting("rows", "head", "extra", value=1), "lacks or misnames a field", id="extra field of a row"),
        pytest.param(setting("rows", "head", value={"ms": 1.0}), "lacks or misnames", id="row without its fields"),
        pytest.param(setting("rows", "head", value=1.0), "lacks or misnames", id="row that is a number"),
        pytest.param(setting("rows", value=[]), "lacks or misnames", id="rows in a list"),
        pytest.param(setting("models", value=[1]), "lacks or misnames", id="model that is a number"),
        pytest.param(TEXT.replace("intercept_ms", "intercept"), "checksum", id="no intercept"),
        pytest.param(setting("fingerprint", value=[1]), "lacks or misnames", id="fingerprint in a list"),
        pytest.param(setting("target", value=[1]), "lacks or misnames", id="target in a list"),
        pytest.param(setting("target", "batch", value=True), "target.batch must be int", id="batch true"),
        pytest.param(setting("target", "color", value="red"), "no field 'color'", id="unknown field of the target"),
        pytest.param(setting("rows", "head", "origin", value="guessed"), "origin is 'guessed'", id="unknown origin"),
        pytest.param(setting("models", 0, "role", value="king"), "role is 'king'", id="unknown role"),
        pytest.param(setting("models", 1, "name", value="0-1"), "holds the model '0-1' twice", id="a model twice"),
        pytest.param(setting("provenance", "state", value=[math.nan]), "must be plain finite values", id="provenance"),
        pytest.param(setting("models", 0, "name", value=3), "models", id="name that is a number"),
        pytest.param(setting("rows", "head", "profiled_ms", value=0.0), "profiled_ms is 0.0", id="profiled 0"),
        pytest.param(setting("intercept_ms", value="1.0"), "intercept_ms is '1.0'", id="intercept as text"),
        pytest.param(setting("intercept_ms", value=10**400), "must be a finite", id="huge intercept"),
        pytest.param(setting("validation", "mean_error", value=math.nan), "must be a number of at", id="error NaN"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        load_table(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5, 0.0, 0, "0.5", True, None, [0.5], 10**400])
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(("rows", "head", "ms"), id="row"),
        pytest.param(("models", 0, "ms"), id="model"),
    ],
)
def test_a_time_that_is_none_is_refused(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(TableError, match=r"\.ms is .* must be a positive number; profile again"):
        load_table(setting(*path, value=value))


@pytest.mark.parametrize("value", [math.nan, math.inf, -1, "1", True, None])
@pytest.mark.parametrize(
    "path",
    [("rows", "head", "spread"), ("rows", "head", "count"), ("models", 1, "spread"), ("validation", "noise_floor")],
)
def test_a_spread_or_count_that_is_none_is_refused(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(TableError, match="must be a number of at least 0"):
        load_table(setting(*path, value=value))


@pytest.mark.parametrize("ms", [math.nan, math.inf, 0.0, -1.0])
def test_a_bad_table_is_not_written_and_the_old_one_stays(tmp_path: Path, ms: float) -> None:
    write_table(TABLE, tmp_path / "table.json")
    with pytest.raises(TableError, match="the table: rows"):
        write_table(replace(TABLE, rows={"head": Row(ms, 0.0, 1)}), tmp_path / "table.json")
    assert read_table(tmp_path / "table.json") == TABLE


def test_files_that_are_no_text_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "table.json"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(TableError, match="cannot be read as a latency table"):
        read_table(binary)
    with pytest.raises(TableError, match="cannot be read as a latency table"):
        read_table(tmp_path)
    with pytest.raises(TableError, match=r"there is no latency table at .* hwnas profile"):
        read_table(tmp_path / "missing.json")
    with pytest.raises(TableError, match="cannot be read as a latency table: embedded null"):
        read_table(tmp_path / "a\0b")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "utf-7"])
def test_another_encoding_is_refused_or_the_same_table(tmp_path: Path, encoding: str) -> None:
    table = replace(TABLE, provenance={"command": "größe"})
    text = dump_table(table).replace("\\u00f6", "ö")  # a hand-edited one: what was written is all ASCII
    (tmp_path / "table.json").write_bytes(text.encode(encoding))
    with pytest.raises(TableError, match=r"cannot be read|not a latency table|changed or damaged"):
        read_table(tmp_path / "table.json")


def test_a_table_cut_off_at_any_character_is_refused() -> None:
    for end in range(len(TEXT.rstrip())):
        with pytest.raises(TableError, match="some table"):
            load_table(TEXT[:end], "some table")


@pytest.mark.parametrize("key", ["schema", "ms", "batch", "onnxruntime", "load", "models"])
def test_a_key_twice_is_refused_at_every_level_even_with_a_checksum_that_holds(key: str) -> None:
    body = TEXT.partition(',\n "checksum": ')[0][1:]
    name = json.dumps(key)
    doubled = body.replace(f"{name}:", f"{name}: 1, {name}:", 1)
    with pytest.raises(TableError, match=f"holds '{key}' twice"):
        load_table(table_module._sealed(doubled) + "\n")


def test_a_table_with_values_that_are_no_numbers_in_its_provenance_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="provenance must be plain finite values"):
        write_table(replace(TABLE, provenance={"anchor_range": math.nan}), tmp_path / "table.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "fingerprint", "message"),
    [
        (Target(threads=2), None, "threads is 1 in the table, 2 wanted"),
        (Target(), {**TABLE.fingerprint, "onnxruntime": "1.21.0"}, "onnxruntime is '1.20.0' in the table, '1.21.0'"),
        (Target(), {"cpu": "A processor"}, "onnxruntime is '1.20.0' in the table, None wanted"),
        (Target(), {**TABLE.fingerprint, "cpu": "Another"}, "cpu is 'A processor' in the table, 'Another' wanted"),
    ],
)
def test_a_table_of_another_target_is_refused(target: Target, fingerprint: dict | None, message: str) -> None:
    TABLE.require_target(Target(), dict(TABLE.fingerprint))
    with pytest.raises(TableError, match=message):
        TABLE.require_target(target, fingerprint)


@given(st.text())
@example("\ud800")
def test_no_text_at_all_raises_anything_else(text: str) -> None:
    with pytest.raises(TableError):
        load_table(text)


@given(st.integers(0, len(TEXT) - 1), st.integers(0, 40), st.text(max_size=5))
@example(0, 0, "\ud800")
def test_no_mutation_raises_anything_else(place: int, length: int, new: str) -> None:
    mutated = TEXT[:place] + new + TEXT[place + length :]
    try:
        assert load_table(mutated) == TABLE  # nothing changed, or white space at the end
    except TableError:
        return


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.sampled_from(
        [
            *((key,) for key in json.loads(TEXT) if key != "checksum"),
            ("rows", "head"),
            ("rows", "head", "ms"),
            ("rows", "head", "origin"),
            ("models", 0),
            ("models", 0, "name"),
            ("models", 0, "role"),
            ("models", 2, "again_ms"),
            ("intercept_ms",),
            ("validation", "models"),
            ("target", "runtime"),
            ("fingerprint", "cpu"),
        ]
    ),
    json_values,
)
@example(("models", 0, "role"), [])
def test_no_value_in_any_field_raises_anything_else(path: tuple[str | int, ...], value: Any) -> None:
    try:
        table = load_table(setting(*path, value=value))
    except TableError:
        return
    write = dump_table(table)
    assert load_table(write) == table
