"""What is asked of every sampler of ours: new networks within the limits, from history alone, better than random."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from scipy.stats import wilcoxon

from hwnas.errors import InfeasibleError, RecipeError
from hwnas.search.known import Known
from hwnas.search.pareto import hypervolume
from hwnas.search.problem import Objective, to_losses
from hwnas.search.samplers import SAMPLERS, make_sampler
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ask_arch, record_failure, record_trial, recorded
from hwnas.space import Arch, IntMatrix, parse_arch

OURS = list(SAMPLERS)
LEARNING = [name for name in OURS if name != "random"]


@pytest.fixture(autouse=True)
def quiet() -> Any:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


class Problem:
    """A toy space with an expensive accuracy and a latency that is known; `limit`: the share that keeps it."""

    def __init__(self, toy: ModuleType, share: float | None = None, prior: bool = False, **size: int) -> None:
        self.space = toy.ToySpace(**size)
        self.truth = toy.ToyEvaluator(self.space)
        sample = self.truth(self.space.sample(500, np.random.default_rng(0)))
        self.limit = None if share is None else float(np.quantile(sample[:, 1], share))
        self.objectives = (toy.ACCURACY, Objective("latency", "ms", "minimize", self.limit))
        self.worst = to_losses(sample, self.objectives).max(axis=0)
        reference = np.sort(sample[:, 0])

        def ranks(archs: IntMatrix) -> np.ndarray:
            return np.searchsorted(reference, self.truth(archs)[:, :1]) / len(reference)

        self.known = Known(
            self.space,
            self.objectives,
            {"latency": lambda archs: self.truth(archs)[:, 1]},
            prior=ranks if prior else None,
        )

    def study(self, name: str, seed: int = 0, **options: Any) -> optuna.Study:
        directions = [objective.direction for objective in self.objectives]
        return optuna.create_study(directions=directions, sampler=make_sampler(name, seed, self.known, **options))

    def go(self, study: optuna.Study, trials: int) -> list[Arch]:
        found = []
        for _ in range(trials):
            trial, arch = ask_arch(study, self.space)
            record_trial(study, self.space, arch, self.truth(np.array([arch]))[0], trial=trial)
            found.append(arch)
        return found

    def volume(self, archs: list[Arch]) -> float:
        return hypervolume(to_losses(self.truth(np.array(archs)), self.objectives), self.worst)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("share", [0.3, 0.05])
def test_every_ask_is_new_and_within_the_limit(toy: ModuleType, name: str, share: float) -> None:
    problem = Problem(toy, share)
    found = problem.go(problem.study(name), 25)
    assert len(set(found)) == 25
    assert (problem.truth(np.array(found))[:, 1] <= problem.limit).all()


@pytest.mark.parametrize("name", OURS)
def test_limits_on_other_quantities_are_kept(toy: ModuleType, name: str) -> None:
    problem = Problem(toy)
    total = (Objective("total", "", "minimize", 9.0), lambda archs: archs.sum(axis=1).astype(float))
    problem.known = Known(problem.space, problem.objectives, problem.known.exact, [total])
    found = problem.go(problem.study(name), 20)
    assert max(sum(arch) for arch in found) <= 9


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("stages", [1, 3])
def test_a_limit_that_nothing_keeps_is_explained(toy: ModuleType, name: str, stages: int) -> None:
    problem = Problem(toy, stages=stages)
    impossible = (problem.objectives[0], Objective("latency", "ms", "minimize", 1e-3))
    problem.known = Known(problem.space, impossible, problem.known.exact)
    with pytest.raises(InfeasibleError, match="attainable"):
        ask_arch(problem.study(name), problem.space)


@pytest.mark.parametrize("name", OURS)
def test_a_space_is_searched_to_its_end(toy: ModuleType, name: str) -> None:
    problem = Problem(toy, stages=1, layers=2, widths=2)
    every = {problem.space.check(arch) for arch in toy.everything(problem.space)}
    study = problem.study(name, start=4) if name in ("local", "lemonade", "surrogate") else problem.study(name)
    assert set(problem.go(study, len(every))) == every
    with pytest.raises(InfeasibleError, match="were evaluated before"):
        ask_arch(study, problem.space)


@pytest.mark.parametrize("name", OURS)
def test_a_search_that_goes_on_elsewhere_asks_the_same(toy: ModuleType, name: str) -> None:
    problem = Problem(toy, 0.5)
    whole = problem.go(problem.study(name, seed=3), 30)
    study = problem.study(name, seed=3)
    found = []
    for trials in (1, 6, 2, 21):
        study.sampler = make_sampler(name, 3, problem.known)  # as in another process
        found += problem.go(study, trials)
    assert found == whole
    assert problem.go(problem.study(name, seed=4), 30) != whole


@pytest.mark.parametrize("name", OURS)
def test_failed_and_undefined_trials_are_not_asked_again(toy: ModuleType, name: str) -> None:
    problem = Problem(toy)
    study, seen = problem.study(name), set()
    for number in range(36):
        trial, arch = ask_arch(study, problem.space)
        assert arch not in seen
        seen.add(arch)
        if number % 3 == 0:
            record_failure(study, problem.space, arch, "diverged", trial=trial)
        elif number % 3 == 1:
            with pytest.warns(UserWarning, match="nan is not acceptable"):  # as a user's objective might
                study.tell(trial, [float("nan"), 1.0])
        else:
            record_trial(study, problem.space, arch, problem.truth(np.array([arch]))[0], trial=trial)
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 24


@pytest.mark.parametrize("name", OURS)
def test_a_batch_is_of_different_architectures(toy: ModuleType, name: str) -> None:
    problem = Problem(toy, 0.5)
    study = problem.study(name)
    for _ in range(4):
        asked = [ask_arch(study, problem.space) for _ in range(6)]
        assert len({arch for _, arch in asked}) == 6
        for trial, arch in asked:
            record_trial(study, problem.space, arch, problem.truth(np.array([arch]))[0], trial=trial)
    assert len(recorded(study)) == 24


@pytest.mark.parametrize(("name", "trials", "options"), [
    ("evolution", 100, {"population": 12, "sample": 4}),
    ("local", 150, {}),
    ("lemonade", 60, {}),
    ("surrogate", 20, {}),
])  # fmt: skip
def test_better_than_random(toy: ModuleType, name: str, trials: int, options: dict[str, Any]) -> None:
    problem = Problem(toy)
    pairs = [
        [
            problem.volume(problem.go(problem.study(each, seed, **given), trials))
            for each, given in ((name, options), ("random", {}))
        ]
        for seed in range(8)
    ]
    ours, random = np.array(pairs).T
    assert wilcoxon(ours, random, alternative="greater").pvalue < 0.01


def test_scores_help_from_the_start(toy: ModuleType) -> None:
    with_scores, without = Problem(toy, prior=True), Problem(toy)
    pairs = [
        [problem.volume(problem.go(problem.study("surrogate", seed), 10)) for problem in (with_scores, without)]
        for seed in range(8)
    ]
    ours, blind = np.array(pairs).T
    assert wilcoxon(ours, blind, alternative="greater").pvalue < 0.01


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("constrained", [False, True])
def test_large_spaces_and_three_objectives(toy: ModuleType, name: str, constrained: bool) -> None:
    problem = Problem(toy, 0.5, stages=4, layers=4)
    count = Objective("layers", "", "minimize")
    problem.objectives = (*problem.objectives, count)

    def layers(archs: IntMatrix) -> np.ndarray:
        return archs[:, ::5].sum(axis=1).astype(float)

    problem.known = Known(problem.space, problem.objectives, {**problem.known.exact, "layers": layers})
    truth = problem.truth
    problem.truth = lambda archs: np.column_stack([truth(archs), layers(archs)])
    study = problem.study(name)
    if constrained:  # what users know after an evaluation counts
        first = problem.go(study, 3)
        for trial in study.get_trials(deepcopy=False):
            study._storage._get_trial(trial._trial_id).system_attrs["constraints"] = (1.0,)
        assert len(first) == 3
    found = problem.go(study, 12)
    assert (problem.truth(np.array(found))[:, 1] <= problem.limit).all()


@pytest.mark.parametrize("name", ["evolution", "local", "lemonade"])
def test_children_know_their_parents_and_are_one_step_away(toy: ModuleType, name: str) -> None:
    problem = Problem(toy)
    study = problem.study(name)
    problem.go(study, 40)
    children = [trial for trial in study.trials if PARENT in trial.user_attrs]
    assert len(children) > 10
    for trial in children:
        parent, child = (
            parse_arch(each.user_attrs["arch"]) for each in (study.trials[trial.user_attrs[PARENT]], trial)
        )
        assert trial.user_attrs[PARENT] < trial.number
        assert list(child) in problem.space.neighbours(parent).tolist()


def test_without_a_space_parameters_of_any_kind_are_searched() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", -2, 2)
        n = trial.suggest_int("n", 1, 64, log=True)
        kind = trial.suggest_categorical("kind", ["a", "b", None])
        penalty = {"a": 0.0, "b": 1.0, None: 2.0}[kind]
        return (x - 1) ** 2 + penalty + abs(n - 8) / 8, (x + 1) ** 2 + penalty

    for name in LEARNING:
        volumes = []
        for each in (name, "random"):
            found = []
            for seed in range(5):
                study = optuna.create_study(directions=["minimize"] * 2, sampler=make_sampler(each, seed))
                study.optimize(objective, n_trials=40)
                found.append(hypervolume(np.array([trial.values for trial in study.trials]), np.full(2, 12.0)))
            volumes.append(np.mean(found))
        assert volumes[0] > volumes[1], name


@pytest.mark.parametrize(("name", "options", "message"), [
    ("surrogate", {"start": 1}, "start >= 2"),
    ("lemonade", {"proposals": 0}, "proposals >= 1"),
    ("evolution", {"population": 3, "sample": 4}, "sample <= population"),
    ("local", {"start": 0}, "start >= 1"),
    ("lemonade", {"children": 3}, "its options: start, proposals"),
    ("random", {"population": 3}, "cannot be made"),
])  # fmt: skip
def test_options_that_cannot_be_used(name: str, options: dict[str, int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_sampler(name, 0, **options)


def test_lemonade_prefers_what_is_far_from_the_front_however_far() -> None:
    from hwnas.search.samplers.lemonade import _Density, _inverse

    crowd = np.array([[1.0, 1.0], [1.01, 1.0], [1.0, 1.01], [1.02, 1.02]])
    density = _Density(crowd)
    chances = _inverse(density(np.array([[1.0, 1.0], [1.05, 1.05], [1e6, 1e-9]])))
    assert chances.sum() == pytest.approx(1)
    assert chances[0] < chances[1] <= chances[2] < 1
    assert np.isfinite(_inverse(_Density(np.ones((3, 1)))(np.array([[1e300]])))).all()


def test_a_large_space_is_begun_with_the_candidates(toy: ModuleType) -> None:
    problem = Problem(toy, prior=True)
    given = problem.space.sample(12, np.random.default_rng(7))
    problem.known = replace(problem.known, candidates=given)
    found = problem.go(problem.study("surrogate"), 5)
    assert {tuple(row) for row in given.tolist()} >= set(found)


OPTUNAS = ["BruteForceSampler", "GPSampler", "GridSampler", "NSGAIISampler", "NSGAIIISampler", "PartialFixedSampler"]
OPTUNAS += ["QMCSampler", "RandomSampler", "TPESampler"]


@pytest.mark.parametrize("name", OPTUNAS)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_optunas_samplers_by_name(toy: ModuleType, name: str) -> None:
    problem = Problem(toy, stages=2, layers=1)
    fixed = {"fixed_params": {"stage0.layer0": "w1"}, "base_sampler": "NSGAIISampler"}
    options = fixed if name == "PartialFixedSampler" else {}
    study = optuna.create_study(directions=["maximize", "minimize"])
    found = set()
    for seed in range(3):
        study.sampler = make_sampler(name, seed, problem.known, **options)
        found |= set(problem.go(study, 1))
    assert len(found) == 3
    assert name != "PartialFixedSampler" or {arch[1] for arch in found} == {1}
