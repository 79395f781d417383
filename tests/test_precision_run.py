"""A run in two precisions, measured for real: profile, search, export; and the front by what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from hwnas.card import read_card
from hwnas.exporting import _export_native, export_stage, faster_members
from hwnas.latency.measure import Measured
from hwnas.pipeline import profile_stage, search_stage
from hwnas.precisions import Member
from hwnas.recipe import parse_recipe
from hwnas.report.summary import RunSummary
from hwnas.results import exported_file
from hwnas.run import Run, train_study
from hwnas.search.study import record_trial
from hwnas.trained import build, front_members, save_weights, weights_path

RECIPE = """
name = "both"
runs = "{folder}/runs"
[target]
precision = ["int8", "fp32"]
[quantise]
max_drop = 100
[data]
source = "digits"
valid_fraction = 0.5
[space]
name = "resnet"
resolutions = [16]
base_depths = [1]
depths = [0, 1]
stage_widths = [64]
stage_strides = [1]
stem_widths = [32]
in_channels = 1
num_classes = 10
[profile]
tables = "{folder}/tables"
networks = 2
fit = 3
held_out = 9
searched = 0
[search]
sampler = "random"
trainings = 1
batch = 1
[train]
epochs = 1
device = "cpu"
threads = 1
"""


def run_in(folder: Path) -> Run:
    text = RECIPE.format(folder=folder.as_posix())
    return Run(parse_recipe(text), text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = run_in(tmp_path_factory.mktemp("both"))
    run.open_folder()
    for precision in run.precisions:
        profile_stage(run.at(precision))
    search_stage(run)
    export_stage(run)
    return run


def test_each_precision_has_its_table(finished: Run) -> None:
    paths = [finished.at(precision).table_path for precision in finished.precisions]
    assert [path.name.split("-")[1] for path in paths] == ["fp32", "int8"]
    assert finished.table_path == paths[0]
    assert [finished.at(precision).table.target.precision for precision in finished.precisions] == ["fp32", "int8"]


def test_members_are_files_in_their_precision(finished: Run) -> None:
    summary = RunSummary.from_json((finished.folder / "summary.json").read_text())
    assert summary.target["precision"] == "fp32, int8"
    assert (finished.folder / "report.html").exists()
    offered = {(member.arch, member.precision) for member in front_members(finished)}
    for row in summary.networks:
        file = finished.folder / row.file
        kinds = {node.op_type for node in onnx.load(file).graph.node}
        assert ("QuantizeLinear" in kinds) == (row.precision == "int8")
        assert row.name.endswith(".int8") == (row.precision == "int8")
        assert read_card(Path(f"{file}.json")).target["precision"] == row.precision
        arch = tuple(map(int, row.arch.split("-")))
        assert (arch, row.precision) in offered or row.precision == "fp32", "that instead of a slower one"
        plain = read_card(finished.folder / "export" / f"{finished.network_name(arch)}.onnx.json")
        assert plain.target["precision"] == "fp32", "beside each network in int8 is the one that it must be faster than"


def test_what_is_measured_to_be_no_faster_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path)
    run.open_folder()
    arch = run.space.check(run.space.sample(1, np.random.default_rng(0))[0])
    record_trial(train_study(run), run.space, arch, (50.0, 0.1))
    monkeypatch.setattr("hwnas.trained.predicted_ms", lambda *_: 0.2)
    plain, low = Member(arch, "fp32", 50.0, 0.2), Member(arch, "int8", 49.0, 0.1)

    def ms(value: float, refused: str | None = None) -> Measured:
        return Measured("x", value, value, value, value, 0.0, refused)

    for own, other, expected in (
        (ms(0.1), ms(0.2), [low]),
        (ms(0.3), ms(0.2), [plain]),
        (ms(0.2), ms(0.2), [plain]),
        (ms(0.3, "busy"), ms(0.2), [low]),
        (ms(0.3), "no such device", [low]),
    ):
        kept, notes = faster_members(run, [low], {low: own, plain: other})
        assert kept == expected
        assert len(notes) == (expected == [plain])
    kept, notes = faster_members(run, [low, plain], {low: ms(0.3), plain: ms(0.2)})
    assert kept == [plain]
    assert "takes 0.3 ms in int8 and 0.2 ms in fp32" in notes[0]


def test_blocks_in_float_are_so_in_the_file(tmp_path: Path) -> None:
    run = run_in(tmp_path)
    run.open_folder()
    (run.folder / "export").mkdir()
    arch = run.space.check(run.space.sample(1, np.random.default_rng(0))[0])
    save_weights(build(run, arch), weights_path(run, arch))
    first = run.space.placed_blocks(arch)[0][0].name
    for in_float in ((), (first,)):
        _export_native(run.at("int8"), Member(arch, "int8", 50.0, 0.1, in_float))
        graph = onnx.load(exported_file(run.at("int8"), arch)).graph
        constants = {tensor.name for tensor in graph.initializer}
        convolutions = [node for node in graph.node if node.op_type == "Conv"]
        assert (convolutions[0].input[1] in constants) == bool(in_float), "weights of floats, or dequantised ones"
        assert convolutions[-1].input[1] not in constants
