"""A search by a supernet: trained once, a front for every target, members as trials like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.errors import InfeasibleError, RecipeError, RunError
from hwnas.latency.index import BlockIndex
from hwnas.pipeline import help_stage, search_stage
from hwnas.recipe import parse_recipe
from hwnas.run import Run, train_study
from hwnas.search.study import failed, recorded
from hwnas.spaces import make_space
from hwnas.supernet.train import SupernetConfig
from hwnas.supernets import accuracy_note
from hwnas.train.loop import TrainingFailed, evaluate, train
from hwnas.trained import trained_network
from hwprof.table import LatencyTable, Row, write_table
from hwprof.target import Target

SPACE: dict[str, Any] = {
    "resolutions": [8], "depths": [1, 2], "kernels": [3, 5], "expands": [2, 4], "stem_width": 8, "stem_stride": 1,
    "stage_widths": [8, 16], "stage_strides": [1, 2], "se": [False, True], "activations": ["relu", "hardswish"],
    "head_widths": [32, 32], "in_channels": 1, "num_classes": 10,
}  # fmt: skip


def table(folder: Path, name: str, ms_per_mac: float, ms_per_param: float) -> str:
    """A made-up device: some pay for MACs, others for weights."""
    path = folder / f"{name}.json"
    blocks = BlockIndex(make_space("mobilenetv3", SPACE)).blocks
    rows = {block.key: Row(1e-3 + ms_per_mac * block.macs + ms_per_param * block.params, 0.0, 1) for block in blocks}
    write_table(LatencyTable(Target(), {"cpu": name}, {}, 0.01, (), None, rows), path)
    return path.as_posix()


def recipe(folder: Path, name: str, table_path: str, supernet: str, *, search: str = "", seed: int = 0) -> str:
    space = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SPACE.items())
    if "proxyless" not in supernet:
        supernet = f"evaluations = 20\n{supernet}"
    return (
        f'name = "{name}"\nseed = {seed}\nruns = "{(folder / "runs").as_posix()}"\n'
        f'[data]\nsource = "digits"\nvalid_fraction = 0.7\n[space]\nname = "mobilenetv3"\n{space}\n'
        f'[profile]\ntable = "{table_path}"\n[search]\ntrainings = 3\n{search}\n'
        f'[train]\nepochs = 2\nbatch_size = 64\ndevice = "cpu"\nthreads = 1\n[supernet]\n{supernet}\n'
    )


def run_of(text: str) -> Run:
    return Run(parse_recipe(text), text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("supernet")


@pytest.fixture(scope="module")
def first(folder: Path) -> Run:
    """A supernet trained for a device that pays for MACs."""
    text = recipe(folder, "first", table(folder, "macs", 1e-6, 0), 'method = "sandwich"\nepochs = 2', search="")
    run = run_of(text)
    search_stage(run)
    return run


def test_members_of_the_front_are_trials_with_their_shared_weights(first: Run) -> None:
    trials = recorded(train_study(first))
    assert len(trials) == 3
    for arch, trial in trials.items():
        network, data = trained_network(first, arch), first.data
        accuracy = evaluate(network, data.x_valid, data.y_valid, data.mean, data.std, 8)
        assert accuracy == pytest.approx(trial.values[0])
        assert trial.user_attrs["shared_accuracy"] == pytest.approx(accuracy)
        assert trial.values[1] == pytest.approx(float(first.predictor.predict_ms(np.array([arch]))[0]))
    subnets = json.loads((first.folder / "supernet" / "subnets.json").read_text())
    assert len(subnets["accuracies"]) == 20
    assert "predicted from 20 evaluated subnets" in (accuracy_note(first) or "")


def test_a_finished_search_is_not_done_again(first: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted((trial.number, trial.values) for trial in recorded(train_study(first)).values())
    monkeypatch.setattr("hwnas.supernets.train_supernet", None)
    monkeypatch.setattr("hwnas.supernets.evaluate", None)  # nor anything evaluated
    again = run_of(first.recipe_text)
    search_stage(again)
    assert sorted((trial.number, trial.values) for trial in recorded(train_study(again)).values()) == before


def test_a_second_target_needs_no_training_and_has_a_front_of_its_own(
    first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.supernets.train_supernet", None)
    supernet = f'trained = "{first.folder.as_posix()}"'
    limit = 'params = "4 k"'
    second = run_of(recipe(folder, "second", table(folder, "params", 0, 1e-6), supernet, search=limit))
    search_stage(second)
    ours, theirs = (set(recorded(train_study(run))) for run in (second, first))
    assert ours != theirs
    assert all(sum(block.params for block in second.space.blocks(arch)) <= 4000 for arch in ours)
    for arch in ours:  # of the same weights
        a, b = (trained_network(second, arch).state_dict(), second.space.build(arch).state_dict())
        assert a.keys() == b.keys()


def test_a_supernet_is_trained_as_the_recipe_says(first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[SupernetConfig] = []

    def train(net: object, data: object, config: SupernetConfig, **others: object) -> None:
        seen.append(config)
        raise TrainingFailed("seen")

    monkeypatch.setattr("hwnas.supernets.train_supernet", train)
    plain = run_of(recipe(folder, "as_said", first.table_path.as_posix(), 'method = "progressive"\nepochs = 3.5'))
    settings = {"augment": "randaugment", "mix": "cutmix", "ema": 0.9}
    changed = plain.recipe.model_copy(update={"train": plain.recipe.train.model_copy(update=settings)})
    with pytest.raises(TrainingFailed):
        search_stage(Run(changed, plain.recipe_text))
    wanted = SupernetConfig("progressive", epochs=3.5, augment="randaugment", mix="cutmix", ema=0.9)
    assert seen == [wanted]


def test_other_processes_of_torchrun_train_a_supernet_and_nothing_else(
    first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.supernets.train_supernet", None)
    help_stage(first)  # it is trained: nothing is left to help with
    trained = f'trained = "{first.folder.as_posix()}"'
    other = run_of(recipe(folder, "helped", first.table_path.as_posix(), trained))
    for run in (other, run_of(recipe(folder, "alone", first.table_path.as_posix(), ""))):
        with pytest.raises(RecipeError, match="torchrun is for supernets"):
            help_stage(run)
    began: list[Run] = []
    monkeypatch.setattr("hwnas.supernets._train", lambda run, net: began.append(run))
    untrained = recipe(folder, "untrained", first.table_path.as_posix(), 'method = "sandwich"\nepochs = 1')
    help_stage(run_of(untrained))
    assert [run.recipe.name for run in began] == ["untrained"]
    assert recorded(train_study(began[0])) == {}


def test_another_space_or_split_is_refused(first: Run, folder: Path) -> None:
    trained = f'trained = "{first.folder.as_posix()}"'
    other = run_of(recipe(folder, "third", first.table_path.as_posix(), trained, seed=1))
    with pytest.raises(RunError, match=r"of another split: \[0, 0.7\] instead of \[1, 0.7\]"):
        search_stage(other)


def test_a_run_without_a_supernet_is_said(first: Run, folder: Path) -> None:
    missing = run_of(recipe(folder, "fourth", first.table_path.as_posix(), f'trained = "{folder / "none"}"'))
    with pytest.raises(RunError, match="train that supernet first"):
        search_stage(missing)


def test_a_limit_that_nothing_keeps_is_said(first: Run, folder: Path) -> None:
    trained = f'trained = "{first.folder.as_posix()}"'
    run = run_of(recipe(folder, "fifth", first.table_path.as_posix(), trained, search='latency = "1 us"'))
    with pytest.raises(InfeasibleError, match="attainable"):
        search_stage(run)


def test_members_are_trained_on_as_the_recipe_says(first: Run, folder: Path) -> None:
    supernet = f'trained = "{first.folder.as_posix()}"\nfine_tune = 1'
    run = run_of(recipe(folder, "sixth", first.table_path.as_posix(), supernet))
    search_stage(run)
    trials = recorded(train_study(run))
    assert all(trial.user_attrs["epochs"] == 1 for trial in trials.values())
    assert any(trial.values[0] != trial.user_attrs["shared_accuracy"] for trial in trials.values())
    same = set(trials) & set(recorded(train_study(first)))
    assert same
    for arch in same:
        weights = [next(iter(trained_network(one, arch).parameters())) for one in (run, first)]
        assert not torch.equal(*weights)


def test_a_member_whose_training_fails_is_a_failed_trial_and_the_others_go_on(
    first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []

    def failing(*arguments: Any, **named: Any) -> Any:
        calls.append(True)
        if len(calls) == 1 or everything:
            raise TrainingFailed("training diverged")
        return train(*arguments, **named)

    monkeypatch.setattr("hwnas.subnets.train", failing)
    everything, supernet = False, f'trained = "{first.folder.as_posix()}"\nfine_tune = 1'
    text = recipe(folder, "failing", first.table_path.as_posix(), supernet)
    for _ in range(2):  # the second time there is nothing left to do
        search_stage(run := run_of(text))
        assert list(failed(train_study(run)).values()) == ["TrainingFailed: training diverged"]
        assert len(recorded(train_study(run))) == len(calls) - 1 == 2
    everything = True
    run = run_of(recipe(folder, "hopeless", first.table_path.as_posix(), supernet))
    with pytest.raises(RunError, match="all 3 trainings failed: TrainingFailed: training diverged; mend"):
        search_stage(run)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('method = "sandwich"', "give one of them"),
        ('method = "sandwich"\nepochs = 1\nminutes = 1', "give one of them"),
        ('method = "ofa"\nepochs = 1', "supernet.method = 'ofa'"),
        ("evaluation = 3", "did you mean evaluations"),
        ('method = "proxyless"\nepochs = 1.5', "whole number of epochs"),
        ('method = "proxyless"\nminutes = 1', "not for minutes"),
        ('method = "proxyless"\nepochs = 1\ntrained = "x"', "no supernet that was trained"),
        ('method = "proxyless"\nepochs = 1\nsampling = "latency"', "sampling is for the other methods"),
        ('method = "sandwich"\nepochs = 1\ntargets = ["1 ms"]', "targets is for method"),
        ('method = "sandwich"\nepochs = 1\nloss = "multiply"', "loss is for method"),
        ('trained = "x"\nwarmup_epochs = 1', "warmup_epochs is for method"),
    ],
)
def test_keys_that_cannot_be_used_are_said(keys: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        parse_recipe(f'name = "x"\n[supernet]\n{keys}\n')


def test_what_does_nothing_but_is_as_it_would_be_may_be_written_down() -> None:
    keys = 'method = "sandwich"\nepochs = 1\nloss = "add"\nwarmup_epochs = 10\ntargets = []'
    assert parse_recipe(f'name = "x"\n[supernet]\n{keys}\n').supernet.loss == "add"


def test_a_limit_that_nothing_keeps_is_said_before_a_supernet_is_trained(
    first: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwnas.supernets.train_supernet", None)
    keys, table_path = 'method = "sandwich"\nepochs = 1', first.table_path.as_posix()
    with pytest.raises(InfeasibleError, match="attainable"):
        search_stage(run_of(recipe(folder, "early", table_path, keys, search='latency = "1 us"')))
    with pytest.raises(TypeError):  # this one can be kept, and would be trained
        search_stage(run_of(recipe(folder, "late", table_path, keys, search='latency = "1 s"')))


def test_proxylessnas_gives_a_network_for_every_target(
    first: Run, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table_path = table(folder, "macs", 1e-6, 0)
    targets = [0.1, 0.13]
    keys = (
        f'method = "proxyless"\nepochs = 1\nwarmup_epochs = 1\nfine_tune = 1\ntargets = {[f"{t} ms" for t in targets]}'
    )
    run = run_of(recipe(folder, "proxyless", table_path, keys))
    search_stage(run)
    trials = sorted(recorded(train_study(run)).values(), key=lambda trial: trial.values[1])
    assert len(trials) == 2
    for trial, target in zip(trials, targets, strict=True):
        assert 0.95 * target <= trial.values[1] <= target
        assert trial.user_attrs["epochs"] == 1
        assert "shared_accuracy" in trial.user_attrs
        assert trial.user_attrs["target_ms"] == target
    assert not caplog.messages
    search_stage(run_of(recipe(folder, "roomy", table_path, keys.replace("0.13", "20").replace("fine_tune = 1", ""))))
    assert [message.split(";")[0] for message in caplog.messages] == [
        "target 20 ms: no network of at least 19 ms was found below it"
    ]


def test_proxylessnas_without_a_target_is_said(first: Run, folder: Path) -> None:
    keys = 'method = "proxyless"\nepochs = 1'
    with pytest.raises(RecipeError, match="needs a latency to end at"):
        search_stage(run_of(recipe(folder, "targetless", first.table_path.as_posix(), keys)))


@pytest.mark.parametrize(
    ("limit", "said"),
    [('params = "3 k"', r"would not keep search\.params = 3000"), ('latency = "0.1 ms"', "has 0.2 ms, above")],
)
def test_proxylessnas_says_which_limits_it_would_not_keep(first: Run, folder: Path, limit: str, said: str) -> None:
    keys = 'method = "proxyless"\nepochs = 1\ntargets = ["0.1 ms", "0.2 ms"]'
    with pytest.raises(RecipeError, match=said):
        search_stage(run_of(recipe(folder, f"limited_{limit[:3]}", first.table_path.as_posix(), keys, search=limit)))
