"""The front in the order of what was measured."""

from __future__ import annotations

from report.conftest import make_row

from hwnas.results import by_measurement


def test_rows_are_ordered_by_what_was_measured() -> None:
    slow = make_row(0, predicted_ms=1.0, measured_ms=1.4, valid_accuracy=90.0)
    fast = make_row(1, predicted_ms=1.2, measured_ms=1.1, valid_accuracy=92.0)
    unmeasured = make_row(2, predicted_ms=1.3, measured_ms=None, refused="away", within_limit=None, valid_accuracy=80.0)
    rows, notes = by_measurement([slow, fast, unmeasured])
    assert [row.name for row in rows] == ["net-1", "net-2", "net-0"]
    assert notes == [
        "as measured, net-0 is not on the front: net-1 is faster and no less accurate on the validation images"
    ]


def test_a_front_that_measurements_confirm_has_no_notes() -> None:
    rows = [make_row(number) for number in range(3)]
    assert by_measurement(rows) == (rows, [])
