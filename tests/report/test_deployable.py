"""A file that breaks a limit is called not deployable wherever it is shown, and one outside its interval is marked."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from made_cards import make_card
from pages import Reader
from report.conftest import make_row
from rich.console import Console

from hwnas.report import wording
from hwnas.report.card import card_page
from hwnas.report.deployable import Verdict, beside_interval, judge
from hwnas.report.figures import front_figure, network_text
from hwnas.report.html import page
from hwnas.report.summary import RunSummary
from hwnas.report.terminal import front_table

OVER, DROPS, SLOWER = {"within_limit": False}, {"within_drop": False}, {"measured_ms": 9.0}
AWAY: dict[str, Any] = {"measured_ms": None, "refused": "away", "within_limit": None}
WORDS = {
    "over": (OVER, "over the latency limit, as measured"),
    "drops": (DROPS, "loses more accuracy than quantise.max_drop allows"),
}


@pytest.mark.parametrize(
    ("within_limit", "within_drop", "unknown", "verdict"),
    [
        (True, True, None, Verdict(True, None)),
        (None, True, None, Verdict(True, None)),
        (None, True, "not measured: away", Verdict(None, "not measured: away")),
        (False, True, None, Verdict(False, WORDS["over"][1])),
        (None, False, "not measured: away", Verdict(False, WORDS["drops"][1])),
        (False, False, None, Verdict(False, f"{WORDS['over'][1]} and {WORDS['drops'][1]}")),
    ],
)
def test_only_what_was_measured_and_keeps_every_limit_is_deployable(
    within_limit: bool | None, within_drop: bool, unknown: str | None, verdict: Verdict
) -> None:
    assert judge(within_limit, within_drop, unknown) == verdict


@pytest.mark.parametrize(
    ("numbers", "beside"),
    [
        ((1.0, 0.9, 1.1), None),
        ((1.1, 0.9, 1.1), None),
        ((1.2, 0.9, 1.1), "slower"),
        ((0.8, 0.9, 1.1), "faster"),
        ((1.2, None, None), None),
        ((None, 0.9, 1.1), None),
    ],
)
def test_beside_the_interval(numbers: tuple[float | None, float | None, float | None], beside: str | None) -> None:
    assert beside_interval(*numbers) == beside


def shown(summary: RunSummary) -> dict[str, str]:
    """What each place says of the run's networks."""
    file = io.StringIO()
    Console(file=file, width=200).print(front_table(summary))
    return {"terminal": file.getvalue(), "page": Reader(page(summary)).text, "sentence": wording.verdict(summary)}


@pytest.mark.parametrize("what", WORDS)
def test_the_terminal_the_page_and_the_sentence_say_it(summary: RunSummary, what: str) -> None:
    changes, words = WORDS[what]
    good, bad = (shown(replace(summary, networks=(make_row(1), make_row(2, **each)))) for each in ({}, changes))
    for place in good:
        assert "not deployable" not in good[place].lower().replace("crosses: not deployable", ""), place
    assert f"net-2 NOT DEPLOYABLE: {words}" in bad["terminal"]
    assert f"not deployable: {words}" in bad["page"]
    assert "1 of 2" in bad["page"]
    assert bad["sentence"].count("not deployable") == 1


def test_the_figure_shows_it_as_another_mark(summary: RunSummary) -> None:
    for changes, expected in (({}, 0), (OVER, 1)):
        row = make_row(2, **changes)
        figure = front_figure(replace(summary, networks=(make_row(1), row)))
        assert figure is not None
        crossed = [one["x"] for one in figure["data"] if one.get("marker", {}).get("symbol") == "x"]
        assert crossed == [[row.measured_ms]] * expected
        assert network_text(row).count("not deployable") == expected


def test_outside_the_interval_is_marked_and_deployable_all_the_same(summary: RunSummary) -> None:
    row = make_row(2, **SLOWER)
    assert row.verdict.deployable
    bad = shown(replace(summary, networks=(make_row(1), row)))
    for place in ("terminal", "page"):
        assert "slower than its prediction interval" in bad[place]
    assert "1 outside the prediction interval" in bad["sentence"]
    assert "slower than its prediction interval" in network_text(row)
    good = shown(replace(summary, networks=(make_row(1), make_row(2))))
    assert not [place for place in good if "slower than" in good[place] or "1 outside" in good[place]]


def test_the_best_network_is_one_that_may_be_deployed(summary: RunSummary) -> None:
    over, drops, kept = make_row(4, **OVER), make_row(3, **DROPS), make_row(1)
    assert wording.best(replace(summary, networks=(over, drops, kept))) == kept
    assert wording.best(replace(summary, networks=(over, drops, make_row(2, **AWAY)))) == make_row(2, **AWAY)
    assert wording.best(replace(summary, networks=(over, drops))) == over


def test_the_card_page_says_it() -> None:
    words = WORDS["over"][1]
    cards = {
        True: make_card(deployable=True),
        False: make_card(deployable=False, not_deployable=words, within_limit=False, latency_limit_ms=0.4),
        None: make_card(not_deployable="not measured: away", outside_interval="slower"),
    }
    texts = {key: Reader(card_page(card)).text for key, card in cards.items()}
    assert f"Not deployable: {words}. A network for" in texts[False]
    assert "0.400 ms" in texts[False]
    assert "not known to be deployable: not measured: away" in texts[None]
    assert "measured slower than its prediction interval" in texts[None]
    assert "deployable:" not in texts[True].lower()


def test_a_card_of_another_target_says_which() -> None:
    other = make_card(measured_on={"device": "phone", "runtime": "litert"}, predicted_ms=None, not_compared="no table")
    text = Reader(card_page(other)).text
    for words in ("litert", "no table", "Not compared with a prediction"):
        assert words in text
    assert "onnxruntime" not in text.split("Training")[0].split("Layer by layer")[0]
