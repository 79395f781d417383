"""Merged tables: rows united on one scale, and every reason for which tables are not merged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hwprof.errors import TableError
from hwprof.merge import merge_tables, pooled_row
from hwprof.table import LatencyTable, Model, Row, Validation, dump_table, load_table
from hwprof.target import Target

PLAIN = LatencyTable(
    target=Target(device="phone", runtime="tflite"),
    fingerprint={"device": "phone"},
    provenance={"imported": {"file": "a.yaml"}},
    intercept_ms=0.0,
    models=(),
    validation=None,
    rows={"a": Row(1.0, 0.1, 10, "imported"), "b": Row(2.0, 0.1, 10, "imported")},
)
MEASURED = LatencyTable(
    target=Target(),
    fingerprint={"cpu": "one"},
    provenance={"space": {"name": "toy"}},
    intercept_ms=0.1,
    models=(
        Model("0", "anchor", 10.0, 0.01),
        Model("1", "anchor", 40.0, 0.01),
        Model("2", "fit", 20.0, 0.01),
        Model("3", "held-out", 30.0, 0.01, again_ms=31.0),
    ),
    validation=Validation(1, 0.01, 0.02, 0.01),
    rows={"a": Row(1.0, 0.1, 3, profiled_ms=1.5), "b": Row(2.0, 0.1, 3)},
)


def other(**changes):
    """A second table of the measured one's target, its numbers on another scale: twice as large."""
    return replace(
        MEASURED,
        intercept_ms=0.2,
        models=(
            Model("0", "anchor", 20.0, 0.01),
            Model("1", "anchor", 80.0, 0.01),
            Model("2", "held-out", 41.0, 0.01),
            Model("4", "held-out", 50.0, 0.01, again_ms=52.0),
        ),
        rows={"c": Row(6.0, 0.1, 3, profiled_ms=8.0)},
        **changes,
    )


def test_rows_are_united_and_both_histories_kept():
    second = replace(PLAIN, provenance={"imported": {"file": "b.yaml"}}, rows={"c": Row(3.0, 0.2, 5, "imported")})
    merged = merge_tables([PLAIN, second], names=["a.json", "b.json"])
    assert merged.rows == {**PLAIN.rows, **second.rows}
    assert (merged.target, merged.fingerprint, merged.models) == (PLAIN.target, PLAIN.fingerprint, ())
    assert [(part["name"], part["provenance"]) for part in merged.provenance["merged"]] == [
        ("a.json", PLAIN.provenance),
        ("b.json", second.provenance),
    ]
    assert load_table(dump_table(merged)) == merged


def test_three_tables_and_a_table_with_itself():
    parts = [replace(PLAIN, rows={key: Row(1.0, 0.0, 1)}) for key in "xyz"]
    assert set(merge_tables(parts).rows) == {"x", "y", "z"}
    again = merge_tables([MEASURED, MEASURED])
    assert again.rows == MEASURED.rows
    assert again.models == MEASURED.models
    assert again.intercept_ms == MEASURED.intercept_ms
    assert again.validation is None  # it spoke of one table's rows


def test_different_values_of_a_row_are_named_or_preferred():
    second = replace(PLAIN, rows={"a": Row(3.0, 0.2, 30, "imported"), "b": Row(2.5, 0.1, 10, "imported")})
    with pytest.raises(TableError, match=r"a is 1 ms in x\.json and 3 ms in y\.json \(and 1 more differ\)"):
        merge_tables([PLAIN, second], names=["x.json", "y.json"])
    assert merge_tables([PLAIN, second], prefer="last").rows == second.rows
    row = merge_tables([PLAIN, second], prefer="pooled").rows["a"]
    assert (row.ms, row.count, row.origin) == (2.5, 40, "imported")
    # 10 values around 1 with std 0.1 and 30 around 3 with std 0.6
    assert (row.spread * row.ms) ** 2 == pytest.approx((10 * (0.01 + 1.5**2) + 30 * (0.36 + 0.5**2)) / 40)


def test_pooling_does_not_depend_on_the_order_or_the_grouping():
    rows = [Row(1.0, 0.1, 10), Row(2.0, 0.2, 20), Row(4.0, 0.05, 5)]
    whole = pooled_row(rows)
    stepwise = pooled_row([pooled_row(rows[:2]), rows[2]])
    for field in ("ms", "spread", "count"):
        assert getattr(pooled_row(rows[::-1]), field) == pytest.approx(getattr(whole, field))
        assert getattr(stepwise, field) == pytest.approx(getattr(whole, field))


def test_rows_without_a_count_are_pooled_alike_and_yield_to_counted_ones():
    bare = pooled_row([Row(1.0, 0.0, 0, "imported"), Row(3.0, 0.0, 0, "imported")])
    assert bare == Row(2.0, 0.5, 0, "imported")
    assert pooled_row([Row(9.0, 0.0, 0, "estimated"), Row(1.0, 0.1, 4)]) == Row(1.0, pytest.approx(0.1), 4)


def test_the_second_table_is_put_on_the_firsts_scale_by_common_anchors():
    merged = merge_tables([MEASURED, other()])
    assert merged.provenance["merged"][1]["scale"] == pytest.approx(0.5)
    assert merged.rows["c"].ms == pytest.approx(3.0)
    assert merged.rows["c"].profiled_ms == pytest.approx(4.0)
    assert merged.rows["a"] == MEASURED.rows["a"]
    assert merged.intercept_ms == pytest.approx(0.1)
    assert merged.provenance["space"] == {"name": "toy"}
    models = {model.name: model for model in merged.models}
    assert [model.name for model in merged.anchors] == ["0", "1"]
    assert (models["0"].ms, models["4"].ms, models["4"].again_ms) == pytest.approx((10.0, 25.0, 26.0))
    # what one table was fitted to does not judge the other
    assert (models["2"].role, models["2"].ms) == ("fit", 20.0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (replace(MEASURED, target=Target(threads=2)), "different targets: threads is 1 and 2"),
        (replace(MEASURED, fingerprint={"cpu": "two"}), "different fingerprints: cpu is 'one' and 'two'"),
        (replace(MEASURED, fingerprint={}), "different fingerprints: cpu is 'one' and None"),
        (replace(MEASURED, models=()), "B has no anchors, A has: .* no common scale"),
        (replace(MEASURED, models=(Model("7", "anchor", 10.0, 0.01),)), "no anchor in common"),
        (other(provenance={"space": {"name": "another"}}), "no anchor in common"),
        (
            replace(MEASURED, models=(Model("0", "anchor", 10.0, 0.01), Model("1", "anchor", 50.0, 0.01))),
            "disagree: the first's are 0.8 to 1 times",
        ),
        (replace(MEASURED, intercept_ms=3.0), "the intercept is 0.1 ms in A and 3 ms in B"),
    ],
)
def test_tables_without_a_common_scale_are_refused(second, message):
    with pytest.raises(TableError, match=message):
        merge_tables([MEASURED, second], names=["A", "B"])


def test_intercepts_may_differ_by_little_or_are_preferred():
    near, far = replace(MEASURED, intercept_ms=0.12), replace(MEASURED, intercept_ms=3.1)
    assert merge_tables([MEASURED, near]).intercept_ms == pytest.approx(0.11)
    assert merge_tables([MEASURED, far], prefer="last").intercept_ms == 3.1
    assert merge_tables([MEASURED, far], prefer="pooled").intercept_ms == pytest.approx(1.6)


def test_fusions_are_united_like_rows():
    first, second = replace(MEASURED, fusion_ms={"x": 0.5}), replace(MEASURED, fusion_ms={"x": 0.5, "y": -0.1})
    assert merge_tables([first, second]).fusion_ms == {"x": 0.5, "y": -0.1}
    with pytest.raises(TableError, match=r"the fusion x is 0\.5 ms in table 1 and 0\.7 ms in table 2"):
        merge_tables([first, replace(MEASURED, fusion_ms={"x": 0.7})])


@pytest.mark.parametrize(
    ("tables", "arguments", "message"),
    [
        ([PLAIN], {}, "at least two tables"),
        ([], {}, "at least two tables"),
        ([PLAIN, PLAIN], {"names": ["one"]}, "each with its name; got 2 and 1"),
        ([PLAIN, PLAIN], {"prefer": "first"}, "prefer is 'first', must be last or pooled"),
    ],
)
def test_wrong_arguments_are_named(tables, arguments, message):
    with pytest.raises(TableError, match=message):
        merge_tables(tables, **arguments)
