"""A network from its card: the same accuracy again, and nothing else that a stranger's card may want."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_cards import make_card
from toy_runs import SPACES, recipe_text, table_path, toy_run

from hwnas.card import Ancestor, Card, read_card
from hwnas.card_recipe import Given, recipe_of, to_toml
from hwnas.carding import card_of, without_passwords
from hwnas.errors import HwnasError, RecipeError, RunError
from hwnas.from_card import reproduce, train_alone, train_card, write_recipe
from hwnas.pipeline import search_stage
from hwnas.recipe import Recipe, load_recipe, parse_recipe
from hwnas.report.reproduction import compare, reproduction_table
from hwnas.run import Run, train_study
from hwnas.search.study import record_failure, recorded
from hwnas.space import parse_arch, rows_of
from hwnas.trained import trained_front, weights_path
from hwnas.training import train_trial


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card, bytes]:
    """A folder, the card of a network made of a network made of a third, and its weights."""
    folder = tmp_path_factory.mktemp("family")
    run = toy_run(recipe_text(folder, "lemonade"))
    run.open_folder()
    arch, parent = run.space.check(run.space.start_archs()[0]), None
    for _ in range(2):
        parent = train_alone(run, arch, parent, "train")
        known = recorded(train_study(run))
        arch = next(each for each in rows_of(run.space.neighbours(arch))[::-1] if each not in known)
    train_alone(run, arch, parent, "train")
    card = card_of(run, arch)
    card = replace(card, accuracy_percent=card.training.test_accuracy_percent, not_measured="it was not exported")
    return folder, card, weights_path(run, arch).read_bytes()


def given(folder: Path, **changes: Any) -> Given:
    return Given(**{"table": Path(table_path(folder, "morph")), **changes})


def run_of(card: Card, folder: Path, given: Given) -> Run:
    path, _ = write_recipe(card, folder, given)
    return Run(load_recipe(path), path.read_text(encoding="utf-8"))


def test_a_network_and_its_ancestors_are_trained_again_to_the_bit(
    family: tuple[Path, Card, bytes], tmp_path: Path
) -> None:
    folder, card, weights = family
    assert len(card.training.lineage) == 2
    run = run_of(card, tmp_path, given(folder))
    assert run.folder == tmp_path / f"toy-card-{card.name}"
    result = reproduce(run, card)
    assert result.holds
    assert "validation accuracy is the same; accuracy of the file is the same" in result.verdict
    assert weights_path(run, parse_arch(card.arch)).read_bytes() == weights
    again = read_card(run.folder / "export" / f"{card.name}.onnx.json")
    assert again.training.lineage[0].arch == card.training.lineage[0].arch
    assert [one.inherited for one in again.training.lineage] == [one.inherited for one in card.training.lineage]
    assert [file.name for file in (run.folder / "export").glob("*.onnx")] == [f"{card.name}.onnx"]
    assert {path.name for path in tmp_path.iterdir()} == {run.folder.name}


def test_without_its_ancestors_it_would_be_another(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, weights = family
    orphan = replace(card, training=replace(card.training, lineage=()))
    run = run_of(orphan, tmp_path, given(folder))
    train_alone(run, parse_arch(card.arch), None, "train")
    assert weights_path(run, parse_arch(card.arch)).read_bytes() != weights


def test_a_killed_reproduction_goes_on(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, weights = family
    trained = []

    def dying(run: Run, trial: Any, *options: Any) -> None:
        if trained and trained[-1] is None:
            trained[-1] = train_trial(run, trial, *options) or run.recipe.name
        else:
            trained.append(None)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.from_card.train_trial", dying)  # a process dies before each training, the next does it
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                train_card(run_of(card, tmp_path, given(folder)), card)
        run = run_of(card, tmp_path, given(folder))
        train_card(run, card)
    assert trained == ["lineage", "lineage", run.recipe.name]
    assert weights_path(run, parse_arch(card.arch)).read_bytes() == weights
    train_card(run, card)  # there is nothing left to do
    assert len(train_study(run).get_trials(deepcopy=False)) == 3, "the two ancestors are noted once"


def test_a_training_that_fails_is_said_and_tried_again(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, _ = family
    run = run_of(replace(card, training=replace(card.training, lineage=())), tmp_path, given(folder))
    arch = parse_arch(card.arch)

    def failing(run: Run, trial: Any, *_: Any) -> None:
        record_failure(train_study(run), run.space, arch, "no memory", trial=trial)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.from_card.train_trial", failing)
        with pytest.raises(RunError, match=rf"{card.name} could not be trained: no memory"):
            train_alone(run, arch, None, "train")
    assert train_alone(run, arch, None, "train") == 1


def test_another_recipe_needs_another_folder_or_fresh(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, _ = family
    path, _ = write_recipe(card, tmp_path, given(folder))
    other = replace(card, recipe=card.recipe.replace("epochs = 2", "epochs = 1"))
    with pytest.raises(RunError, match=r"train\.epochs changed"):
        write_recipe(other, tmp_path, given(folder))
    again, notes = write_recipe(other, tmp_path, given(folder), fresh=True)
    assert again == path
    assert load_recipe(path).train.epochs == 1
    assert notes[-2] == f"the older run is now {path.parent}.1"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"arch": "0-0"}, "has 10 slots"),
        ({"space": {"name": "nasbench201"}}, "differ: was it edited"),
        ({"lineage": ("1-1-2-0-1-0-2-0-0-0",) * 2}, "names a network twice"),
        ({"lineage": ("7-1-2-0-1-0-2-0-0-0",)}, "has options 0..2"),
    ],
)
def test_a_card_that_contradicts_itself(
    family: tuple[Path, Card, bytes], tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    folder, card, _ = family
    ancestors = tuple(Ancestor(arch, None, None) for arch in changes.pop("lineage", ()))
    bad = replace(card, training=replace(card.training, lineage=ancestors), **changes)
    with pytest.raises(HwnasError, match=why):
        train_card(run_of(bad, tmp_path, given(folder)), bad)


EVIL = """
name = "quickstart"
runs = "/etc"
seed = 17
[target]
device = "local"
[space]
name = "morph"
[data]
source = "digits"
root = "/srv/images"
[profile]
tables = "/srv/tables"
table = "/etc/passwd"
[search]
storage = "postgresql://me:secret@example.org/trials"
executor = "ray"
workers = 1000
sampler = "lemonade"
[train]
epochs = 3
stopper = "curve_ranking"
timeout_seconds = 1.0
"""


def evil(key: str = "", value: str = "") -> Card:
    """A stranger's card, with another value of a key of its recipe."""
    text = re.sub(f"(?m)^{key} = .*$", f"{key} = {value}", EVIL) if key else EVIL
    return make_card(recipe=text, training=replace(make_card().training, lineage=()))


def test_a_network_that_fills_the_machine_is_refused(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, _ = family
    run = run_of(card, tmp_path, given(folder))
    for limit, why in (("MOST_PARAMS", f"at most 4096 and {card.params - 1} "), ("MOST_PIXELS", "images of 8 pixels")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"hwnas.from_card.{limit}", card.params - 1 if limit == "MOST_PARAMS" else 7)
            with pytest.raises(RecipeError, match=why):
                reproduce(run, card)
    assert not (run.folder / "journal.log").exists(), "nothing was begun"


def test_a_folder_begun_with_another_card_is_not_gone_on_with(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, _ = family
    run = run_of(replace(card, training=replace(card.training, lineage=())), tmp_path, given(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hwnas.from_card.train_trial", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train_alone(run, parse_arch(card.arch), None, "train")
    with pytest.raises(RunError, match="begun with another card"):
        train_alone(run, parse_arch(card.training.lineage[0].arch), None, "train")


def test_what_names_another_machine_is_not_used_and_is_said(tmp_path: Path) -> None:
    recipe, notes = recipe_of(evil(), tmp_path / "runs", Given())
    assert recipe.folder == tmp_path / "runs" / "quickstart-card"
    assert (recipe.profile.tables, recipe.profile.table) == (str(tmp_path / "runs" / "latency_tables"), None)
    assert (recipe.search.storage, recipe.search.executor, recipe.search.workers) == (None, "local", None)
    assert (recipe.data.root, recipe.target.device, recipe.seed, recipe.train.epochs) == ("data", "local", 17, 3)
    assert (recipe.train.stopper, recipe.train.timeout_seconds, recipe.train.inherit) == ("none", None, False)
    said = "\n".join(notes)
    for one in ("'/etc'", "'/srv/images'", "'/srv/tables'", "'/etc/passwd'", "search.storage", "up to 3 epochs"):
        assert one in said, one
    assert "secret" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "allowed", "why"),
    [
        ("device", '"ssh:root@example.org"', {"device": "local"}, r"'ssh:root@example.org'.*--target local"),
        ("device", '["local", "ssh:root@example.org"]', {"device": "adb"}, "--target"),
        ("device", '"local, adb"', {"device": "local"}, "--target"),
        ("source", '"folder:/home"', {"data": "digits"}, r"'folder:/home'.*--data"),
        ("source", '"torchvision:FashionMNIST"', {"data": "digits"}, "--data"),
        ("source", '"/dev/zero"', {"data": "digits"}, "--data"),
    ],
)
def test_machines_and_data_need_the_users_word(
    key: str, value: str, allowed: dict[str, str], why: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=why):
        recipe_of(evil(key, value), tmp_path, Given())
    recipe, notes = recipe_of(evil(key, value), tmp_path, Given(**allowed))
    assert (recipe.target.device, recipe.data.source) == (allowed.get("device", "local"), allowed.get("data", "digits"))
    assert any(f"{key} of the card is not used" in note for note in notes)


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (lambda: make_card(recipe="name = "), "not valid TOML"),
        (lambda: make_card(recipe="a = " + "[" * 50_000), "nested too deeply|not valid TOML"),
        (lambda: make_card(recipe='name = "../../etc"'), "name = '../../etc'"),
        (lambda: make_card(recipe='name = "a"\n"\\u001b[2J" = 1'), "unknown key \ufffd"),
        (lambda: make_card(recipe='name = "a"\n[target]\nruntime = "../../x"'), "target.runtime is '../../x'"),
        (lambda: make_card(recipe='name = "a"\n[target]\noptimisation = "all/../../x"'), "is no level"),
        (lambda: make_card(target={"precision": "int8"}), "target.precision is 'int8', and its recipe has fp32"),
        (lambda: evil("epochs", "1000000000"), "train.epochs = 1000000000, from a card at most"),
        (lambda: make_card(recipe='name = "a"\n[target]\nthreads = 100000'), "target.threads = 100000"),
        (lambda: make_card(recipe='name = "a"\n[profile]\nnetworks = 10000000'), "profile.networks"),
    ],
)
def test_recipes_that_are_refused(card: Callable[[], Card], why: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        recipe_of(card(), tmp_path, Given())
    assert "\x1b" not in str(caught.value)


def test_of_several_precisions_a_card_is_of_one(tmp_path: Path) -> None:
    text = 'name = "a"\n[target]\nprecision = ["fp32", "int8"]\n[data]\nsource = "digits"\n'
    for precision in ("fp32", "int8"):
        card = make_card(recipe=text, target={"precision": precision})
        recipe, _ = recipe_of(card, tmp_path, Given(table=tmp_path / "table.json"))
        assert recipe.target.precision == precision
        assert parse_recipe(to_toml(recipe)) == recipe


def test_a_card_keeps_its_limit(tmp_path: Path) -> None:
    text = 'name = "a"\n[search]\nlatency = "0.15 ms"\n[data]\nsource = "digits"\n'
    recipe, _ = recipe_of(make_card(recipe=text), tmp_path, Given(table=tmp_path / "table.json"))
    assert recipe.search.latency == pytest.approx(0.15)
    assert parse_recipe(to_toml(recipe)) == recipe


def test_a_recipe_comes_back_from_its_text() -> None:
    space = {"name": "morph", "widths": [8, 16], "odd key": 'a"b\\\x7f\u2028\n', "nested": {"x": [True, 1e-05]}}
    given = {"name": "a", "space": space, "train": {"learning_rate": 1e-5}, "search": {"latency": "0.15 ms"}}
    recipe = Recipe.model_validate(given)
    assert parse_recipe(to_toml(recipe)) == recipe
    for name, arguments in SPACES.items():
        recipe = Recipe.model_validate({"name": "a", "space": {"name": name, **arguments}})
        assert parse_recipe(to_toml(recipe)) == recipe


def test_passwords_stay_at_home(family: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    text = 'storage = "postgresql://me:s3cr:et@host/db" # and grpc://host:80'
    assert without_passwords(text) == 'storage = "postgresql://me:***@host/db" # and grpc://host:80'
    assert "s3cr" not in json.dumps(family[1].facts())


IMAGES = (1000, 1000)


@pytest.mark.parametrize(
    ("changes", "holds", "remark"),
    [
        ({}, (True, True, True), "accuracy of the file is the same"),
        ({"accuracy_percent": 91.4}, (True, False, True), "differs by 0.10 points, though"),
        ({"accuracy_percent": 91.4, "versions": {"torch": "3"}}, (True, True, True), "no more than 3.74 on 1000"),
        ({"accuracy_percent": 87.0, "versions": {"torch": "3"}}, (True, False, True), ", more than 3.74 on 1000"),
        ({"accuracy_percent": 91.4, "machine": {"gpu": "H"}}, (True, True, True), "gpu None then, 'H' now"),
        ({"input": {"mean": [0.1]}}, (False, False, True), "on other images than the card's"),
        ({"measured_ms": 0.42, "measured_interval_ms": (0.415, 0.425)}, (True, True, True), r"is \+4.0 % off"),
        ({"measured_ms": 0.5, "measured_interval_ms": (0.48, 0.52)}, (True, True, False), r"is \+23.8 % off"),
        ({"measured_ms": 0.5, "measured_interval_ms": (0.4, 0.6)}, (True, True, True), r"is \+23.8 % off"),
        ({"measured_ms": None, "not_measured": "drift"}, (True, True, None), "cannot be compared: 'drift'"),
        ({"target": {"device": "ssh:x", "runtime": "onnxruntime", "threads": 1, "cpu": "Example CPU"}},
         (True, True, True), "is the same"),
        ({"target": {"cpu": "B"}}, (True, True, None), "another target: 'cpu' is 'Example CPU' there, 'B' here"),
        ({"accuracy_percent": None}, (True, None, True), "or not checked"),
    ],
)  # fmt: skip
def test_then_and_now(changes: dict[str, Any], holds: tuple[bool | None, ...], remark: str) -> None:
    card = make_card()
    versions = {**card.versions, **changes.pop("versions", {})}
    machine = {**card.machine, **changes.pop("machine", {})}
    result = compare(card, make_card(versions=versions, machine=machine, **changes), IMAGES)
    assert tuple(one.holds for one in result.compared) == holds
    assert re.search(remark, result.verdict)
    assert result.holds == (False not in holds)
    assert result.verdict.startswith("Reproduced" if result.holds else "Not reproduced")
    assert reproduction_table(result).row_count == 3


def test_a_file_of_another_format_is_not_compared() -> None:
    shipped = make_card(accuracy_percent={"validation": 80.0, "test": 80.0}, measured_ms=None)
    result = compare(shipped, make_card(), IMAGES)
    assert [one.holds for one in result.compared] == [True, None, None]
    assert "the card's file was not measured" in result.verdict


def test_a_training_bounded_in_seconds_may_differ() -> None:
    again = make_card(valid_accuracy_percent=92.0)
    assert not compare(make_card(), again, IMAGES).holds
    assert compare(make_card(), again, IMAGES, ["it ends after 3 s"]).holds


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Card, bytes]:
    """A folder, the card of a network of a supernet, trained on for an epoch, and its weights."""
    folder = tmp_path_factory.mktemp("member")
    supernet = '[supernet]\nmethod = "sandwich"\nepochs = 1\nevaluations = 10\nfine_tune = 1\n'
    run = toy_run(recipe_text(folder, "surrogate", search="", train="ema = 0.9") + supernet)
    search_stage(run)
    arch = trained_front(run)[0]
    return folder, card_of(run, arch), weights_path(run, arch).read_bytes()


def test_a_supernet_is_trained_again_for_its_network(member: tuple[Path, Card, bytes], tmp_path: Path) -> None:
    folder, card, weights = member
    path, notes = write_recipe(card, tmp_path, Given(table=Path(table_path(folder, "nasbench201"))))
    assert notes[0] == "trains a supernet for 1 epochs, takes one network of it, and trains that on for 1"
    for _ in range(2):  # the second time there is nothing left to do
        run = Run(load_recipe(path), path.read_text(encoding="utf-8"))
        assert train_card(run, card) == parse_arch(card.arch)
        (trial,) = recorded(train_study(run)).values()
        assert trial.values[0] == card.valid_accuracy_percent
    assert weights_path(run, parse_arch(card.arch)).read_bytes() == weights


@pytest.mark.parametrize(
    ("written", "instead", "said"),
    [
        ("epochs = 1\nevaluations", "minutes = 1\nevaluations", "trained for minutes"),
        ("evaluations = 10", 'sampling = "latency"', "whose training a latency table steers"),
        ('method = "sandwich"\nepochs = 1', 'trained = "/etc"', "that another run trained"),
        (
            'method = "sandwich"\nepochs = 1\nevaluations = 10',
            'method = "proxyless"\nepochs = 1',
            "a latency table steers",
        ),
        ("epochs = 1\nevaluations", "epochs = 1e9\nevaluations", "supernet.epochs = 1000000000.0"),
    ],
)
def test_a_supernet_that_a_card_does_not_determine_is_refused(
    member: tuple[Path, Card, bytes], tmp_path: Path, written: str, instead: str, said: str
) -> None:
    _, card, _ = member
    assert written in card.recipe
    with pytest.raises(RecipeError, match=said):
        recipe_of(replace(card, recipe=card.recipe.replace(written, instead)), tmp_path, Given())
