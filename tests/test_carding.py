"""The card of a run's network says what the run holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from toy_runs import recipe_text, toy_run

from hwnas.card import Card
from hwnas.carding import card_of
from hwnas.export.card import metadata_of, write_card
from hwnas.export.verify import Verification
from hwnas.latency.measure import Measured
from hwnas.results import exported_file, model_card, network_row
from hwnas.run import Run, train_study
from hwnas.search.samplers.base import PARENT
from hwnas.search.study import ARCH, record_trial, recorded
from hwnas.space import Arch, rows_of
from hwnas.training import CURVE

FACTS = {"epochs": 2, "seconds": 3.5, "train_loss": 0.5, "test_accuracy": 71.0, CURVE: [50.0, 70.0]}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = toy_run(recipe_text(tmp_path, "lemonade"))
    run.open_folder()
    return run


def family(run: Run) -> list[Arch]:
    """Three recorded networks: the second inherited from the first, the third from the second."""
    first = run.space.check(run.space.start_archs()[0])
    archs = [first, *rows_of(run.space.neighbours(first))[:2]]
    study = train_study(run)
    for number, arch in enumerate(archs):
        inherited = {"inherited": f"step {number}", PARENT: number - 1} if number else {PARENT: 0}
        record_trial(study, run.space, arch, (70.0 + number, 1.0), {**FACTS, **inherited})
    return archs


def test_a_card_says_what_the_run_holds(run: Run) -> None:
    *_, arch = family(run)
    card = card_of(run, arch)
    assert Card.from_json(card.to_json()) == card
    assert card.recipe == run.recipe_text
    assert (card.seed, card.run, card.data, card.data_licence) == (0, "toy", "digits", None)
    assert card.table.sha256 == hashlib.sha256(run.table_path.read_bytes()).hexdigest()
    assert card.table.name == run.table_path.name
    assert (card.training.epochs, card.training.seconds, card.training.curve) == (2, 3.5, (50.0, 70.0))
    assert {"hwnas", "python", "torch", "onnx", "onnxruntime"} <= set(card.versions)
    assert str(run.folder.parent) not in card.facts()["name"] + str(card.table) + str(card.machine)
    assert card.predicted_interval_ms == (None, None)
    assert card.predicted_ms == pytest.approx(sum(layer.ms or 0.0 for layer in card.layers) + 0.01)


def test_the_lineage_is_that_of_the_weights(run: Run) -> None:
    archs = family(run)
    trials = recorded(train_study(run))
    for number, arch in enumerate(archs):
        lineage = card_of(run, arch).training.lineage
        assert [one.arch for one in lineage] == [trials[each].user_attrs[ARCH] for each in archs[:number]]
        assert [one.valid_accuracy_percent for one in lineage] == [70.0, 71.0][:number]
    assert card_of(run, archs[0]).training.inherited is None, "a parent whose weights were not used is none"


def test_a_trial_of_another_kind_says_less(run: Run) -> None:
    arch = run.space.check(run.space.start_archs()[0])
    record_trial(train_study(run), run.space, arch, (70.0, 1.0))
    training = card_of(run, arch).training
    assert (training.epochs, training.seconds, training.curve, training.lineage) == (None, None, (), ())


def test_a_written_card_is_one_with_its_file(run: Run) -> None:
    *_, arch = family(run)
    file = exported_file(run, arch)
    file.parent.mkdir()
    file.write_bytes(b"a model")
    verified = Verification(68.5, 68.5, 1e-7, 10)
    row = network_row(run, arch, verified, Measured("x", 2.0, 1.9, 2.1, 2.0, 0.0, None))
    values = model_card(run, row, verified)
    card = Card.from_json(write_card(values, file).read_text(encoding="utf-8"))
    assert (card.accuracy, card.measured_ms, card.measured_interval_ms) == (68.5, 2.0, (1.9, 2.1))
    assert (card.measured_confidence, card.size_bytes, card.file) == (0.95, 7, file.name)
    assert (card.deployable, card.not_deployable) == (True, None)
    assert sum(map(len, metadata_of(values).values())) < 10_000
    over = model_card(run, replace(row, within_limit=False, predicted_low_ms=1.0, predicted_high_ms=1.5), verified)
    assert (over["deployable"], over["within_limit"], over["outside_interval"]) == (False, False, "slower")
    assert over["not_deployable"] == "over the latency limit, as measured"
    refused = network_row(run, arch, verified, "no such device")
    again = Card.from_json(write_card(model_card(run, refused, verified), file).read_text(encoding="utf-8"))
    assert (again.measured_ms, again.not_measured) == (None, "no such device")
    assert (again.deployable, again.not_deployable) == (None, "not measured: no such device")


def test_without_its_table_a_card_says_what_the_trial_says(run: Run) -> None:
    *_, arch = family(run)
    run.table_path.unlink()
    card = card_of(run, arch)
    assert Card.from_json(card.to_json()) == card
    assert (card.predicted_ms, card.predicted_interval_ms, card.table, card.other_ms) == (1.0, (None, None), None, {})
    assert {layer.ms for layer in card.layers} == {None}
