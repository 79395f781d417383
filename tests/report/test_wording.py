from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.report import wording
from hwnas.report.summary import NetworkRow, RunSummary

UNMEASURED: dict[str, Any] = {"measured_ms": None, "refused": "drift", "within_limit": None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (1.2, "1.20"),
        (9.994, "9.99"),
        (9.996, "10.0"),
        (0.04123, "0.0412"),
        (0.000123456, "0.000123"),
        (123.4, "123"),
        (1234.5, "1234"),
        (-0.5, "-0.500"),
        (None, "–"),
    ],
)
def test_significant(value: float | None, text: str) -> None:
    assert wording.significant(value) == text


@given(st.floats(1e-6, 1e6))
def test_significant_keeps_three_digits_and_no_powers(value: float) -> None:
    text = wording.significant(value)
    assert float(text) == pytest.approx(value, rel=0.0051)
    assert "e" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (950, "950"),
        (999_400, "999 k"),
        (999_600, "1.00 M"),
        (4_560_000, "4.56 M"),
        (2e9, "2.00 G"),
    ],
)
def test_count(value: int | None, text: str) -> None:
    assert wording.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(830, "830 B"), (12_300, "12.3 kB"), (4_560_000, "4.56 MB")])
def test_size(value: int, text: str) -> None:
    assert wording.size(value) == text


@pytest.mark.parametrize(("value", "text"), [(3.21, "3.2 s"), (245, "4 min 05 s"), (7800, "2 h 10 min")])
def test_seconds(value: float, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("fraction", "sign", "text"), [(0.0191, False, "1.9 %"), (0.02, True, "+2.0 %"), (-0.02, True, "-2.0 %")]
)
def test_share(fraction: float, sign: bool, text: str) -> None:
    assert wording.share(fraction, sign) == text


def test_verdict_says_what_matters(summary: RunSummary) -> None:
    text = wording.verdict(summary)
    for part in ("7 networks", "95.0 % accurate within the limit of 1.45 ms", "0.420 to 1.50 ms measured", "1 over it"):
        assert part in text
    for part in ("off by 2.0 % on average", "1 not measured", "noise floor 1.7 %"):
        assert part in text
    assert "\n" not in text


def test_the_best_network_keeps_the_limit(summary: RunSummary, row_of: Callable[..., NetworkRow]) -> None:
    kept, over, unknown = row_of(1), row_of(2, within_limit=False), row_of(3, **UNMEASURED)
    assert wording.best(replace(summary, networks=(kept, over, unknown))) == kept
    assert wording.best(replace(summary, networks=(over, unknown))) == unknown
    assert wording.best(replace(summary, networks=())) is None


@pytest.mark.parametrize(
    ("rows", "parts", "absent"),
    [
        ([], ["No network", "37 evaluated"], ["accurate", "nan"]),
        ([{}], ["1 network on", "92.4 % accurate", "0.525 ms measured"], ["up to", "not measured"]),
        ([UNMEASURED], ["0.536 ms predicted", "none measured"], ["within", "0.525", "off by"]),
        ([{"within_limit": False}], ["1 over the limit of 1.45 ms"], ["within"]),
    ],
)
def test_verdict_of_poor_runs(
    summary: RunSummary,
    row_of: Callable[..., NetworkRow],
    rows: list[dict[str, Any]],
    parts: list[str],
    absent: list[str],
) -> None:
    text = wording.verdict(replace(summary, networks=tuple(row_of(1, **changes) for changes in rows)))
    assert all(part in text for part in parts), text
    assert not any(part in text for part in absent), text
