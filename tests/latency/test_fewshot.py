"""A new device of which only totals are read: on devices of a test's making, whose truth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwnas.errors import MissingRowError, PredictorError
from hwnas.latency.fewshot import (
    Sources,
    TransferPredictor,
    dump_times,
    find_sources,
    make_predictor,
    networks_to_measure,
    read_sources,
    read_times,
    transfer_table,
)
from hwnas.latency.index import BlockIndex
from hwnas.latency.predict import TablePredictor
from hwnas.space import SearchSpace
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.errors import TableError
from hwprof.table import LatencyTable, Row, dump_table, load_table, read_table, write_table
from hwprof.target import Target

SPACE = NasBench201Space(channels=4, cells=1, resolution=8)
KEYS = BlockIndex(SPACE).keys
TARGET = Target(device="phone", runtime="app")


def device(seed: int, space: SearchSpace = SPACE) -> LatencyTable:
    """Devices whose blocks take alike, each with its own taste."""
    keys = BlockIndex(space).keys
    common = np.random.default_rng(0).uniform(0.1, 1, len(keys))
    rows = common * np.exp(np.random.default_rng(seed).normal(0, 0.3, len(keys))) * (1 + seed % 3)
    space_facts = {"name": space.name, **space.config}
    return LatencyTable(
        target=Target(device=f"device{seed}"),
        fingerprint={},
        provenance={"space": space_facts},
        intercept_ms=0.2,
        models=(),
        validation=None,
        rows={key: Row(float(ms), 0.0, 1) for key, ms in zip(keys, rows, strict=True)},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tables of other devices."""
    folder = tmp_path_factory.mktemp("tables")
    for seed in (1, 2, 3):
        write_table(device(seed), folder / f"{seed}.json")
    return folder


@pytest.fixture(scope="module")
def sources(folder: Path) -> Sources:
    return read_sources(SPACE, [folder / f"{seed}.json" for seed in (1, 2, 3)])


TRUTH = TablePredictor(SPACE, device(7))
UNSEEN = SPACE.sample(300, np.random.default_rng(9))


def measured(archs) -> dict:
    return {arch: float(TRUTH.predict_ms(np.array([arch]))[0]) for arch in archs}


def test_a_few_networks_on_a_new_device_predict_the_rest(folder: Path, sources: Sources) -> None:
    chosen = networks_to_measure(SPACE, sources, 12, seed=0)
    assert len(set(chosen)) == 12
    assert chosen == networks_to_measure(SPACE, sources, 12, seed=0)
    table = transfer_table(SPACE, TARGET, sources, measured(chosen), 0, folder)
    predictor = make_predictor(SPACE, load_table(dump_table(table)), folder)
    truth, predicted = TRUTH.predict_ms(UNSEEN), predictor.predict_ms(UNSEEN)
    errors = np.abs(predicted / truth - 1)
    nearest = [
        source * np.exp(np.mean(np.log(truth / source))) for source in sources.predict_ms(UNSEEN).T
    ]  # each source on the true scale: better than anybody can know
    assert errors.mean() < 0.5 * min(np.abs(source / truth - 1).mean() for source in nearest)
    low, high = predictor.interval_ms(UNSEEN)
    assert ((low <= truth) & (truth <= high)).mean() > 0.75
    assert (predictor.upper_ms(UNSEEN, 0.95) > predicted).all()
    assert not predictor.additive


def test_more_can_be_asked_for_later(sources: Sources) -> None:
    first = networks_to_measure(SPACE, sources, 4, seed=0)
    more = networks_to_measure(SPACE, sources, 4, 0, first)
    assert len({*first, *more}) == 8


def test_without_any_source_the_space_alone_is_the_prior(folder: Path) -> None:
    none = Sources({})
    chosen = networks_to_measure(SPACE, none, 40, seed=0)
    predictor = TransferPredictor(SPACE, transfer_table(SPACE, TARGET, none, measured(chosen), 0, folder), none)
    truth = TRUTH.predict_ms(UNSEEN)
    assert np.corrcoef(predictor.predict_ms(UNSEEN), truth)[0, 1] > 0.8


def test_only_tables_of_the_space_are_sources(folder: Path, tmp_path: Path, sources: Sources) -> None:
    (tmp_path / "deeper").mkdir()
    write_table(device(1), tmp_path / "deeper" / "1.json")
    write_table(device(1, NasBench201Space(channels=8, cells=1, resolution=8)), tmp_path / "other.json")
    (tmp_path / "text.json").write_text("{}")
    write_table(
        transfer_table(SPACE, TARGET, sources, measured(map(tuple, UNSEEN[:3])), 0, tmp_path), tmp_path / "t.json"
    )
    assert list(find_sources(SPACE, tmp_path).predictors) == [tmp_path / "deeper" / "1.json"]
    with pytest.raises(TableError, match=r"t\.json was itself made by a transfer"):
        read_sources(SPACE, [tmp_path / "t.json"])
    with pytest.raises(MissingRowError, match=r"other\.json does not serve: the latency table has no row"):
        read_sources(SPACE, [tmp_path / "other.json"])


def test_sources_that_are_gone_or_changed_are_said(tmp_path: Path) -> None:
    write_table(device(1), tmp_path / "1.json")
    sources = read_sources(SPACE, [tmp_path / "1.json"])
    (tmp_path / "phone").mkdir()
    table = transfer_table(SPACE, TARGET, sources, measured([(0, 3, 0, 0, 0, 1)]), 0, tmp_path / "phone")
    assert table.provenance["transfer"]["sources"][0]["path"] == "../1.json"
    make_predictor(SPACE, table, tmp_path / "phone")
    write_table(device(2), tmp_path / "1.json")
    with pytest.raises(TableError, match="has changed since the transfer"):
        make_predictor(SPACE, table, tmp_path / "phone")
    (tmp_path / "1.json").unlink()
    with pytest.raises(TableError, match="there is no latency table"):
        make_predictor(SPACE, table, tmp_path / "phone")


def test_a_table_of_rows_makes_the_usual_predictor(folder: Path) -> None:
    assert isinstance(make_predictor(SPACE, read_table(folder / "1.json"), folder), TablePredictor)


def test_a_transfer_without_measurements_or_of_another_space(folder: Path, sources: Sources) -> None:
    with pytest.raises(PredictorError, match="no network was measured"):
        TransferPredictor(SPACE, transfer_table(SPACE, TARGET, sources, {}, 0, folder), sources)
    table = transfer_table(SPACE, TARGET, sources, measured(map(tuple, UNSEEN[:3])), 0, folder)
    other = replace(table, provenance={**table.provenance, "space": {"name": "nasbench201", "cells": 5}})
    with pytest.raises(PredictorError, match="another space"):
        TransferPredictor(SPACE, other, sources)


NETWORKS = [(SPACE.check((0, 3, 0, 0, 0, 1)), "a.onnx", 1.25), (SPACE.check((3, 0, 0, 0, 1, 0)), "b.onnx", None)]


def test_times_are_a_table_to_be_filled_in() -> None:
    text = dump_times(NETWORKS)
    assert text.splitlines()[0] == "network,file,ms"
    assert read_times(SPACE, text, "times.csv") == NETWORKS
    assert read_times(SPACE, "\ufeff" + text.replace("\n", "\r\n") + "\n\n", "times.csv") == NETWORKS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("1.25", "fast"), r"times\.csv, line 2: 'fast' is no number of milliseconds"),
        (("1.25", "0"), "line 2: 0 ms; a latency is above zero"),
        (("1.25", "nan"), "line 2: nan ms"),
        (("1.25", "inf"), "line 2: inf ms"),
        (("1.25", "1,25"), "line 2: 4 values"),
        (("network,file", "name;file"), "must begin with the line network,file,ms, got name"),
    ],
)
def test_times_that_cannot_be_read_name_the_line(change: tuple[str, str], message: str) -> None:
    with pytest.raises(PredictorError, match=message):
        read_times(SPACE, dump_times(NETWORKS).replace(*change), "times.csv")
    with pytest.raises(PredictorError, match=r"line 3: .* stands there twice"):
        read_times(SPACE, dump_times([NETWORKS[0], NETWORKS[0]]), "times.csv")
    with pytest.raises(PredictorError, match="got nothing"):
        read_times(SPACE, "", "times.csv")
