"""Which tables a run searches under, and on which devices it measures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.errors import RecipeError
from hwnas.recipe import parse_recipe
from hwnas.run import Run
from hwprof.errors import TableError, TargetError
from hwprof.table import LatencyTable, Row, write_table
from hwprof.target import Target

TABLE = LatencyTable(
    Target(device="ssh:a, ssh:b"), {"cpu": "Board", "cores": "4"}, {}, 0.0, (), None, {"conv:size=8": Row(1.0, 0.0, 1)}
)


def run(path: Path, target: str = 'device = "ssh:a"', profile: str = "") -> Run:
    text = f'name = "a"\n[target]\n{target}\n[profile]\ntable = "{path.as_posix()}"\n{profile}\n'
    return Run(parse_recipe(text), text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_table(TABLE, tmp_path / "table.json")
    return tmp_path / "table.json"


def test_a_farms_table_is_that_of_each_of_its_devices(path: Path) -> None:
    for target in ('device = "ssh:a"', 'device = ["ssh:b", "ssh:a"]', 'device = "ssh:a, ssh:b"'):
        assert run(path, target).table == TABLE
    assert list(run(path, 'device = ["ssh:b", "ssh:a"]').devices) == ["ssh:b", "ssh:a"]
    for target in ('device = "ssh:c"', 'device = ["ssh:a", "ssh:c"]', 'device = "local"'):
        with pytest.raises(TableError, match=r"device is 'ssh:a, ssh:b' in the table"):
            run(path, target).table  # noqa: B018
    # Where the machine is known, it does not matter how it is reached.
    TABLE.require_target(Target(device="local"), {"cpu": "Board", "cores": "4"})
    with pytest.raises(TableError, match="cpu is 'Board' in the table, 'Desk' wanted"):
        TABLE.require_target(Target(device="ssh:a"), {"cpu": "Desk", "cores": "4"})


def test_a_table_of_an_emulator_is_searched_under_only_if_asked_for(path: Path) -> None:
    write_table(replace(TABLE, fingerprint={**TABLE.fingerprint, "emulated": "qemu-user"}), path)
    with pytest.raises(TableError, match=r"measured in an emulator \(qemu-user\).*profile\.emulated = true"):
        run(path).table  # noqa: B018
    assert run(path, profile="emulated = true").table.fingerprint["emulated"] == "qemu-user"


def test_devices_and_precisions_that_cannot_be_are_told(path: Path) -> None:
    with pytest.raises(RecipeError, match="the runtime onnxruntime has no precision 'bf16'; it has fp32, fp16, int8"):
        run(path, 'precision = "bf16"')
    with pytest.raises(TargetError, match="name one device twice"):
        run(path, 'device = ["ssh:a", "ssh:a"]').devices  # noqa: B018
    with pytest.raises(TargetError, match="unknown device 'moon'; known: local"):
        run(path, 'device = "moon:1"').devices  # noqa: B018
    with pytest.raises(RecipeError, match=r"target\.device"):
        run(path, "device = [1]")
