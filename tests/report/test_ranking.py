"""The page says why a network was ranked where it was."""

from __future__ import annotations

from dataclasses import replace

from hwnas.report.html import page
from hwnas.report.ranking import ranking_table, score_places
from hwnas.report.summary import Candidate, RunSummary


def candidates(*scores: dict[str, float]) -> tuple[Candidate, ...]:
    return tuple(Candidate(f"{n}-0", each, 1.0 + n, None) for n, each in enumerate(scores))


def test_the_best_is_first_equals_share_a_place_and_what_is_undefined_comes_last() -> None:
    found = candidates({"a": 3.0}, {"a": 7.0}, {}, {"a": 3.0})
    assert score_places(found) == {"a": [2, 1, 4, 2]}


def test_the_table_names_the_score_that_held_a_network_back(summary: RunSummary) -> None:
    scored = candidates(
        {"combined": -0.1, "synflow": 2.0, "naswot": 9.0}, {"combined": -0.7, "synflow": 1.0, "naswot": 10.0}
    )
    table = ranking_table(replace(summary, candidates=scored))
    first, second = table.index("<small>0-0</small>"), table.index("<small>1-0</small>")
    assert first < second, "the best is the first row"
    assert "mean logarithm of the ranks in synflow, naswot" in table
    assert "<td>naswot</td>" in table[first:second]
    assert "<td>synflow</td>" in table[second:]
    assert "2 of 2" in table


def test_a_score_without_a_vote_holds_nobody_back_and_is_said(summary: RunSummary) -> None:
    scored = candidates({"combined": 0.0, "a": 2.0, "b": 2.0, "zen": 1.0}, {"combined": -0.7, "a": 1.0, "b": 1.0})
    table = ranking_table(replace(summary, candidates=scored, without_vote={"zen": -0.25}))
    assert "zen (-0.25)" in table
    assert "ranks in a, b (" in table
    assert "<td>zen</td>" not in table


def test_one_score_needs_no_explanation_of_several(summary: RunSummary) -> None:
    table = ranking_table(replace(summary, candidates=candidates({"naswot": 1.0}, {"naswot": 2.0})))
    assert "Held back by" not in table
    assert "ranked by naswot" in table


def test_the_page_has_it_with_names_of_exported_networks(summary: RunSummary) -> None:
    text = page(summary)
    assert "Why each network was ranked where it was" in text
    assert f"<strong>{summary.networks[0].name}</strong>" in text
    assert "Why each network" not in page(replace(summary, candidates=()))
