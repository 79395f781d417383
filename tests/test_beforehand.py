"""What a run knows before it trains: every limit of its recipe, and the ranks of what was scored as a prior."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from hwnas.beforehand import known_of
from hwnas.latency.index import BlockIndex
from hwnas.limits import known_limits
from hwnas.run import score_objectives, score_study
from hwnas.scored import REASONS, SCORES
from hwnas.search.study import record_failure, record_trial
from hwnas.sections import SearchSection
from hwnas.space import IntMatrix, rows_of, unique_archs
from hwnas.spaces import make_space
from hwprof.target import Target

SPACE = make_space("nasbench201", {"channels": 4, "cells": 1, "resolution": 8})
NAMES = ["naswot", "synflow", "meco", "snip"]


def convolutions(archs: IntMatrix) -> np.ndarray:
    return ((archs == 2) + 3 * (archs == 3)).sum(axis=1).astype(float)


def run_in(folder: Path, precision: str = "fp32", **search: Any) -> Any:
    return SimpleNamespace(
        folder=folder,
        space=SPACE,
        index=BlockIndex(SPACE),
        target=Target(precision=precision),
        precisions=(precision,),
        searched_ms=lambda archs: 1.1 * (1 + convolutions(archs)),
        predictor=SimpleNamespace(predict_ms=lambda archs: 1 + convolutions(archs)),
        recipe=SimpleNamespace(seed=0, search=SearchSection.model_validate({"score": NAMES, **search})),
    )


ARCHS = unique_archs(SPACE.sample(300, np.random.default_rng(0)))


@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("fp16", 2), ("int8", 1)])
def test_limits_are_those_of_the_blocks(tmp_path: Path, precision: str, width: int) -> None:
    run = run_in(tmp_path, precision, macs="100 k", params=9000, size="30 kB", latency="7 ms")
    found = {objective.name: (objective.limit, quantity(ARCHS)) for objective, quantity in known_limits(run)}
    params = [sum(block.params for block in SPACE.blocks(arch)) for arch in rows_of(ARCHS)]
    macs = [sum(block.macs for block in SPACE.blocks(arch)) for arch in rows_of(ARCHS)]
    assert {name: limit for name, (limit, _) in found.items()} == {
        "latency": 7.0, "macs": 100e3, "params": 9000.0, "size": 30e3,
    }  # fmt: skip
    np.testing.assert_array_equal(found["params"][1], params)
    np.testing.assert_array_equal(found["macs"][1], macs)
    np.testing.assert_array_equal(found["size"][1], width * np.array(params))
    known = known_of(run, scored=False)
    inside = (np.array(params) <= min(9000, 30e3 / width)) & (np.array(macs) <= 100e3)
    inside &= 1.1 * (1 + convolutions(ARCHS)) <= 7  # the upper bound, not the prediction
    np.testing.assert_array_equal(known.feasible(ARCHS), inside)
    assert 0 < inside.sum() < len(ARCHS)


def test_without_limits_everything_is_feasible(tmp_path: Path) -> None:
    known = known_of(run_in(tmp_path), scored=True)
    assert known_limits(run_in(tmp_path)) == ()
    assert known.feasible(ARCHS).all()
    assert known.prior is None
    np.testing.assert_array_equal(known.exact["latency"](ARCHS), 1 + convolutions(ARCHS))


def test_the_prior_has_the_ranks_of_the_scored_and_foretells_those_of_others(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    study = score_study(run)
    truth = convolutions(ARCHS) + 0.1 * (ARCHS == 4).sum(axis=1)
    scored = ARCHS[:60]
    for number, arch in enumerate(rows_of(scored)):
        good = float(truth[number])
        # a score that disagrees with all others has no vote, and one that is undefined ranks last
        scores = {"naswot": good, "synflow": good**3, "meco": None if number == 7 else good, "snip": -good}
        record_trial(study, SPACE, arch, (good, 1.0), {SCORES: scores, REASONS: {}})
    record_failure(study, SPACE, rows_of(ARCHS)[60], "dead")
    known = known_of(run, scored=True)
    assert known.prior is not None
    np.testing.assert_array_equal(known.candidates, scored)
    ranks = known.prior(scored)
    assert ranks.shape == (60, 3)
    assert ranks[7, 2] == ranks[:, 2].min() == pytest.approx(1 / 60)
    assert ranks.max() <= 1
    assert spearmanr(ranks[:, 0], truth[:60])[0] == pytest.approx(1)
    others = known.prior(ARCHS[61:])
    assert ((others >= 0) & (others <= 1)).all()
    assert spearmanr(others[:, 0], truth[61:])[0] > 0.9
    assert [objective.limit for objective in known.objectives] == [None, None]
    assert [objective.name for objective in score_objectives(run)] == ["naswot + synflow + meco + snip", "latency"]
