from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hwnas.errors import InfeasibleError, RecipeError, RunError, SpaceError
from hwnas.search.problem import Objective
from hwnas.search.samplers import make_sampler
from hwnas.search.study import (
    ask_arch,
    failed,
    open_study,
    record_failure,
    record_trial,
    recorded,
)

ACCURACY = Objective("accuracy", "%", "maximize")
LATENCY = Objective("latency", "ms", "minimize", limit=5.0)
OBJECTIVES = [ACCURACY, LATENCY]


@pytest.fixture
def space(toy):
    return toy.ToySpace(stages=2, layers=2)


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "run" / "journal.log"


@pytest.fixture(autouse=True)
def quiet():
    """Studies made by the tests themselves are announced on standard error."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


def open_again(journal, objectives=OBJECTIVES, sampler=None):
    return open_study(journal, "search", objectives, sampler)


def test_what_is_recorded_is_there_after_reopening(space, journal):
    study = open_again(journal)
    record_trial(study, space, (1, 2, 1, 0, 1, 0), [71.5, 3.25], {"epochs": 3, "log": "a.json"})
    record_trial(study, space, (0, 1, 2, 0, 0, 0), [60, np.float64(2.0)])
    found = recorded(open_again(journal))
    assert list(found) == [(1, 2, 1, 0, 1, 0), (0, 1, 0, 0, 0, 0)]  # the second was given with an inactive slot set
    trial = found[1, 2, 1, 0, 1, 0]
    assert trial.values == [71.5, 3.25]
    assert trial.user_attrs == {"epochs": 3, "log": "a.json", "arch": "1-2-1-0-1-0"}
    assert trial.params == space.describe((1, 2, 1, 0, 1, 0))
    assert trial.distributions["stage0.depth"] == optuna.distributions.CategoricalDistribution((1, 2))
    assert space.arch_of(trial.params) == (1, 2, 1, 0, 1, 0)


def test_directions_and_names_are_the_objectives(journal):
    study = open_again(journal)
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["accuracy (%)", "latency (ms)"]


def test_the_front_of_the_study_is_in_the_users_sense(space, journal):
    study = open_again(journal)
    for arch, values in {(0,) * 6: [60, 1], (0, 1, 0, 0, 0, 0): [50, 2], (0, 2, 0, 0, 0, 0): [70, 3]}.items():
        record_trial(study, space, arch, values)
    assert sorted(trial.values for trial in study.best_trials) == [[60, 1], [70, 3]]


@pytest.mark.parametrize(
    "objectives",
    [
        [LATENCY, ACCURACY],
        [ACCURACY],
        [ACCURACY, Objective("latency", "us", "minimize")],
        [ACCURACY, Objective("energy", "mJ", "minimize")],
        [ACCURACY, Objective("latency", "ms", "maximize")],
    ],
)
def test_a_study_with_other_objectives_is_refused(journal, objectives):
    open_again(journal)
    with pytest.raises(RunError, match=r"was made for maximize accuracy \(%\), minimize latency \(ms\); asked for"):
        open_again(journal, objectives)


def test_a_limit_may_change_and_names_may_differ(space, journal):
    record_trial(open_again(journal), space, (0,) * 6, [60, 1])
    study = open_again(journal, [ACCURACY, Objective("latency", "ms", "minimize", limit=1.0)])
    assert len(recorded(study)) == 1
    assert recorded(open_study(journal, "another", [LATENCY])) == {}


def test_a_study_that_lost_its_names_to_a_kill_gets_them(journal):
    """Killed between the creation and the naming."""
    open_again(journal)
    lines = journal.read_text().splitlines(keepends=True)
    named = next(number for number, line in enumerate(lines) if "accuracy (%)" in line)
    journal.write_text("".join(lines[:named]))
    assert open_again(journal).metric_names == ["accuracy (%)", "latency (ms)"]


@pytest.mark.parametrize("lost", [1, 20, "all but one"])
def test_a_torn_last_line_costs_only_itself(space, journal, lost):
    study = open_again(journal)
    record_trial(study, space, (0, 1, 0, 0, 0, 0), [60, 1])
    whole = journal.read_bytes()
    record_trial(study, space, (0, 2, 0, 0, 0, 0), [61, 2])
    torn = journal.read_bytes()
    torn = torn[: len(whole) + 1] if lost == "all but one" else torn[:-lost]
    journal.write_bytes(torn)
    study = open_again(journal)
    assert list(recorded(study)) == [(0, 1, 0, 0, 0, 0)]
    record_trial(study, space, (1, 0, 0, 0, 0, 0), [62, 3])
    record_trial(study, space, (1, 1, 0, 0, 0, 0), [63, 4])
    assert list(recorded(open_again(journal))) == [(0, 1, 0, 0, 0, 0), (1, 0, 0, 0, 0, 0), (1, 1, 0, 0, 0, 0)]
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@pytest.mark.parametrize("content", [b"not json\n", b'{"op_code": 0}\n', b"[]\n", b"\xff\xfe\n", b"\n"])
def test_a_journal_damaged_elsewhere_is_an_error_that_names_it(journal, content):
    journal.parent.mkdir()
    journal.write_bytes(content)
    with pytest.raises(RunError, match=r"journal\.log is not an intact Optuna journal"):
        open_again(journal)
    assert journal.read_bytes() == content


def _write_forever(journal, space):
    study = open_again(journal)
    for arch in space.sample(100_000, np.random.default_rng(0)):
        record_trial(study, space, arch, [1.0, 2.0])


def test_a_killed_writer_leaves_a_readable_journal(toy, journal):
    space = toy.ToySpace()
    writer = multiprocessing.get_context("fork").Process(target=_write_forever, args=(journal, space))
    writer.start()
    deadline = time.monotonic() + 20
    while not (journal.exists() and journal.stat().st_size > 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    # a writer killed inside of its lock leaves it behind; Optuna breaks it after half a minute, a test need not wait
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    study = open_again(journal)
    before = recorded(study)
    assert len(before) > 5
    fresh = next(
        tuple(arch) for arch in space.sample(100, np.random.default_rng(1)).tolist() if tuple(arch) not in before
    )
    record_trial(study, space, fresh, [3.0, 4.0])
    assert set(recorded(open_again(journal))) == {*before, fresh}


@pytest.mark.parametrize("values", [[60.0], [60.0, 1.0, 2.0], [float("nan"), 1.0], [60.0, float("inf")]])
def test_values_that_are_none_are_refused(space, journal, values):
    study = open_again(journal)
    with pytest.raises(RunError, match="needs 2 finite values"):
        record_trial(study, space, (0,) * 6, values)
    assert study.trials == []


def test_an_architecture_of_another_space_is_refused(space, journal):
    with pytest.raises(SpaceError, match="6 slots"):
        record_trial(open_again(journal), space, (0, 0), [60.0, 1.0])
    with pytest.raises(SpaceError, match=r"options 0\.\.1"):
        record_failure(open_again(journal), space, (7, 0, 0, 0, 0, 0), "out of memory")


def test_failures_keep_their_reason_and_are_no_results(space, journal):
    study = open_again(journal)
    record_failure(study, space, (0,) * 6, "loss became NaN in epoch 3")
    record_failure(study, space, (1, 0, 0, 0, 0, 0), "out of memory")
    record_trial(study, space, (1, 0, 0, 0, 0, 0), [60, 1])  # the second try went well
    study = open_again(journal)
    assert failed(study) == {(0,) * 6: "loss became NaN in epoch 3"}
    assert list(recorded(study)) == [(1, 0, 0, 0, 0, 0)]


def test_opening_says_nothing_and_leaves_the_verbosity_alone(journal, capfd):
    before = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    try:
        optuna.logging.set_verbosity(logging.INFO)
        open_again(journal)
        open_again(journal)
        assert optuna.logging.get_verbosity() == logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
        optuna.logging.disable_propagation()
    assert capfd.readouterr().err == ""


SAMPLERS = {
    "TPESampler": {"n_startup_trials": 5},
    "NSGAIISampler": {"population_size": 4},
    "NSGAIIISampler": {"population_size": 4},
    "RandomSampler": {},
    "QMCSampler": {},
    "BruteForceSampler": {},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_any_sampler_proposes_new_feasible_architectures(space, journal, toy, name):
    evaluate = toy.ToyEvaluator(space)
    study = open_again(journal, sampler=make_sampler(name, seed=0, **SAMPLERS[name]))

    def feasible(archs):
        return archs[:, 1] != 2

    seen = []
    for _ in range(12):
        trial, arch = ask_arch(study, space, feasible)
        record_trial(study, space, arch, evaluate(np.array([arch]))[0], trial=trial)
        seen.append(arch)
    assert len(set(seen)) == 12
    assert all(arch[1] != 2 and arch == space.check(arch) for arch in seen)
    assert list(recorded(study)) == seen
    assert {trial.user_attrs["arch"] for trial in study.trials if trial.state == TrialState.COMPLETE} == {
        "-".join(map(str, arch)) for arch in seen
    }
    skipped = [trial for trial in study.trials if "skipped" in trial.user_attrs]
    assert all(trial.state in (TrialState.PRUNED, TrialState.FAIL) for trial in skipped)
    assert len(skipped) == len(study.trials) - 12
    assert failed(study) == {}


def test_a_genetic_sampler_learns_through_told_trials(toy):
    """It breeds from its population only if the asked trials are the told ones."""
    space = toy.ToySpace(stages=3, layers=3)
    sampler = make_sampler("NSGAIISampler", seed=1, population_size=10)
    study = optuna.create_study(directions=["maximize"], sampler=sampler)
    values = []
    for _ in range(80):
        trial, arch = ask_arch(study, space)
        values.append(float(sum(arch[stage * 4] for stage in range(3)) * 10 + sum(arch)))
        record_trial(study, space, arch, values[-1:], trial=trial)
    assert np.mean(values[-20:]) > np.mean(values[:20]) + 10


def test_asking_is_reproducible(toy, tmp_path):
    space = toy.ToySpace()

    def run(name, seed):
        study = open_study(tmp_path / name, "s", [LATENCY], make_sampler("TPESampler", seed, n_startup_trials=3))
        archs = []
        for _ in range(8):
            trial, arch = ask_arch(study, space)
            record_trial(study, space, arch, [float(sum(arch))], trial=trial)
            archs.append(arch)
        return archs

    assert run("a", 1) == run("b", 1) != run("c", 2)


def test_a_failed_trial_is_told_and_not_asked_again(space, journal):
    study = open_again(journal, sampler=make_sampler("RandomSampler", seed=0))
    trial, arch = ask_arch(study, space)
    record_failure(study, space, arch, "device went away", trial=trial)
    assert failed(open_again(journal)) == {arch: "device went away"}
    study = open_again(journal, sampler=make_sampler("RandomSampler", seed=0))
    assert ask_arch(study, space)[1] != arch


def test_a_resumed_seed_gets_past_what_it_asked_before(toy):
    """The same seed first repeats itself; these repetitions must not exhaust the tries."""
    space = toy.ToySpace(stages=4, layers=4)
    study = optuna.create_study()
    for _ in range(2):
        study.sampler = make_sampler("RandomSampler", seed=0)
        for _ in range(15):
            trial, arch = ask_arch(study, space, max_tries=3)
            record_trial(study, space, arch, [1.0], trial=trial)
    assert len(recorded(study)) == 30


def test_nothing_feasible_ends(space, journal):
    study = open_again(journal, sampler=make_sampler("RandomSampler", seed=0))
    with pytest.raises(
        InfeasibleError, match=r"RandomSampler found no new .* toy in 7 tries: 7 broke a limit .* 0 were"
    ):
        ask_arch(study, space, lambda archs: np.zeros(len(archs), dtype=bool), max_tries=7)
    assert [trial.state for trial in study.trials] == [TrialState.PRUNED] * 7
    assert "breaks a limit" in study.trials[0].user_attrs["skipped"]


@pytest.mark.parametrize("name", ["RandomSampler", "BruteForceSampler"])
def test_an_exhausted_space_ends(toy, journal, name):
    space = toy.ToySpace(stages=1, layers=1, widths=3)
    study = open_again(journal, [LATENCY], make_sampler(name, seed=0))
    for _ in range(3):
        trial, arch = ask_arch(study, space)
        record_trial(study, space, arch, [1.0], trial=trial)
    with pytest.raises(InfeasibleError, match="were evaluated before"):
        ask_arch(study, space, max_tries=5)


def test_an_enqueued_choice_is_asked_first(space, journal):
    study = open_again(journal)
    study.enqueue_trial(space.describe((1, 2, 1, 1, 0, 2)))
    assert ask_arch(study, space)[1] == (1, 2, 1, 1, 0, 2)


def test_a_grid_sampler_takes_the_slots_as_its_option(toy, journal):
    space = toy.ToySpace(stages=1, layers=2, widths=2)
    grid = {slot.name: list(slot.options) for slot in space.slots}
    study = open_again(journal, [LATENCY], make_sampler("GridSampler", 0, search_space=grid))
    for _ in range(6):
        trial, arch = ask_arch(study, space)
        record_trial(study, space, arch, [1.0], trial=trial)
    assert len(recorded(study)) == 6


def test_a_sampler_that_there_is_not():
    with pytest.raises(RecipeError, match=r"no sampler 'TPE'; there are surrogate, .*NSGAIISampler.*TPESampler"):
        make_sampler("TPE", 0)
    with pytest.raises(RecipeError, match="no sampler 'BaseSampler'"):
        make_sampler("BaseSampler", 0)


@pytest.mark.parametrize("options", [{"populations": 3}, {"population_size": 1}])
def test_a_sampler_option_that_cannot_be(options):
    with pytest.raises(RecipeError, match=r"NSGAIISampler cannot be made: .*its options: .*population_size"):
        make_sampler("NSGAIISampler", 0, **options)
