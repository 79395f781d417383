"""Every shipped table loads, says what it is for, and predicts the networks that were measured with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.latency.predict import TablePredictor
from hwnas.space import parse_arch
from hwnas.spaces import make_space
from hwprof.host import device_slug
from hwprof.table import read_table

FOLDER = Path(__file__).parents[2] / "latency_tables"
TABLES = sorted(FOLDER.glob("*/*.json"))


def test_there_are_tables_and_the_readme_names_each() -> None:
    assert TABLES
    text = (FOLDER / "README.md").read_text()
    for path in TABLES:
        assert path.parent.name in text
        assert path.stem.rpartition("-")[2] in text


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_shipped_table_predicts_its_own_networks(path: Path) -> None:
    table = read_table(path)
    assert path.parent.name == device_slug(table.fingerprint)
    assert path.name.startswith(table.target.slug())
    arguments = dict(table.provenance["space"])
    predictor = TablePredictor(make_space(arguments.pop("name"), arguments), table)
    held_out = [model for model in table.models if model.role == "held-out"]
    archs = np.array([parse_arch(model.name) for model in held_out])
    errors = np.abs(predictor.predict_ms(archs) / [model.ms for model in held_out] - 1)
    assert table.validation is not None
    assert errors.mean() == pytest.approx(table.validation.mean_error, rel=1e-3)
    assert errors.mean() < 0.03
    command = table.provenance["command"]
    assert command.startswith("hwnas profile")
    assert command in (FOLDER / "README.md").read_text()
