"""Optuna's own shipped suite for samplers, on each of ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from optuna.samplers import BaseSampler

from hwnas.search.samplers import SAMPLERS, make_sampler

suite = pytest.importorskip("optuna.testing.pytest_samplers", reason="Optuna ships its suite from version 5 on")


class Ours:
    @pytest.fixture(params=SAMPLERS)
    def sampler(self, request: pytest.FixtureRequest) -> Callable[[], BaseSampler]:
        return partial(make_sampler, request.param, 0)


class TestBasic(Ours, suite.BasicSamplerTestCase):
    pass


class TestRelative(Ours, suite.RelativeSamplerTestCase):
    pass


class TestMultiObjective(Ours, suite.MultiObjectiveSamplerTestCase):
    pass
