"""Why a network was ranked where it was: its place in each score among all that were scored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hwnas.ranks import places
from hwnas.report.document import cell, sorting_table
from hwnas.report.markup import Markup, tag
from hwnas.report.summary import Candidate, RunSummary
from hwnas.report.wording import NOTHING, significant, silent_scores


def score_places(candidates: tuple[Candidate, ...]) -> dict[str, list[int]]:
    """Score name -> each candidate's place, 1 for the best; equal scores share one, undefined ones come last."""
    names = dict.fromkeys(name for one in candidates for name in one.scores)
    return {name: places(np.array([one.scores.get(name, np.nan) for one in candidates])).tolist() for name in names}


def ranking_table(summary: RunSummary) -> Markup:
    """Every scored architecture, the best first: each score with the place that it gives; nothing if none was scored.

    The first score is the one that was searched by; where there are more, it is the combined rank in these.
    """
    found = score_places(summary.candidates)
    if not found:
        return Markup()
    names, n = list(found), len(summary.candidates)
    voting = [name for name in names[1:] if name not in summary.without_vote]
    trained = {row.arch: row.name for row in summary.networks}
    columns = [("Architecture", ""), *((name, "number") for name in names)]
    columns += [("Held back by", "")] if len(names) > 2 else []
    columns += [("Predicted (ms)", "number"), ("Validation accuracy (%)", "number")]

    def cells(row: int, one: Candidate) -> Iterator[Markup]:
        shown = [tag("strong", trained[one.arch]), " "] if one.arch in trained else []
        yield tag("td", *shown, tag("small", one.arch), data_value=one.arch)
        for name in names:
            value = one.scores.get(name)
            place = tag("small", f"{found[name][row]} of {n}")
            yield cell(value, significant(value, 4), place)
        if len(names) > 2:
            worst = max(voting, key=lambda name: found[name][row])
            yield tag("td", worst)
        yield cell(one.predicted_ms, significant(one.predicted_ms))
        accuracy = one.valid_accuracy
        yield cell(accuracy, NOTHING if accuracy is None else f"{accuracy:.1f}")

    order = sorted(range(n), key=lambda row: found[names[0]][row])
    rows = [tag("tr", *cells(row, summary.candidates[row])) for row in order]
    what = f"{n} scored architectures, ranked by {names[0]}"
    if len(names) > 2:
        what += f", the best quarter by those that agree there: the mean logarithm of the ranks in {', '.join(voting)}"
    table = sorting_table(what, columns, rows)
    silent = silent_scores(summary.without_vote)
    note = tag("p", silent, class_="muted") if silent else Markup()
    return tag("details", tag("summary", "Why each network was ranked where it was"), note, table)
