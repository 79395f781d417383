"""`hwnas export` in formats and for targets of the user's choice, from a finished toy search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from toy_runs import recipe_text, toy_run
from typer.testing import CliRunner

from hwnas.cli import app
from hwnas.errors import ExportError, RecipeError, RunError
from hwnas.export.sensitive import Choice
from hwnas.export_command import parse_target, wanted_of
from hwnas.pipeline import search_stage
from hwnas.run import train_study
from hwnas.search.study import recorded
from hwnas.shipping import Wanted, ship_networks
from hwnas.trained import trained_network
from hwprof.errors import TargetError
from hwprof.target import Target


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a toy search's recipe and run, and the name of the network that is fastest on its front."""
    folder = tmp_path_factory.mktemp("finished")
    text = recipe_text(folder, "surrogate").replace("trainings = 6", "trainings = 3")
    (folder / "toy.toml").write_text(text)
    run = toy_run(text)
    return folder, run.network_name(search_stage(run)[0])


def export(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["export", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_run_is_exported_in_several_formats_and_precisions(finished: tuple[Path, str]) -> None:
    folder, name = finished
    run = folder / "runs" / "toy"
    formats = ("--format", "onnx", "--format", "ort", "--precision", "fp32", "--precision", "int8", "--network", name)
    cards = json.loads(export(str(run), *formats, "--normalise", "inside", "--json"))
    assert [(card["format"], card["precision"]) for card in cards] == [
        ("onnx", "fp32"), ("onnx", "int8"), ("ort", "fp32"), ("ort", "int8"),
    ]  # fmt: skip
    for card in cards:
        assert Path(card["path"]).is_relative_to(run / "export" / card["format"])
        assert card["accuracy_percent"].keys() == {"validation", "test"}
        assert card["accuracy_percent"]["test"] == pytest.approx(card["module_accuracy_percent"]["test"], abs=8)
        assert card["input"]["scale"] == "pixels, 0 to 255, as they are"
    made = toy_run((folder / "toy.toml").read_text())
    arch = next(arch for arch in recorded(train_study(made)) if made.network_name(arch) == name)
    assert cards[0]["checked_images"] == {"validation": len(made.data.y_valid), "test": len(made.data.y_test)}
    # As the search saw it, and as a stranger sees it who knows nothing but the file.
    assert cards[0]["accuracy_percent"]["validation"] == pytest.approx(cards[0]["valid_accuracy_percent"], abs=0.5)
    pixels = made.data.x_test[:9].float()
    logits = ort.InferenceSession(cards[0]["path"]).run(None, {"images": pixels.numpy()})[0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (made.data.mean, made.data.std))
    with torch.no_grad():
        expected = trained_network(made, arch).eval()((pixels / 255 - mean) / std).numpy()
    assert np.abs(logits - expected).max() < 1e-4


def test_sensitive_blocks_stay_in_float_in_shipped_files(
    finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = finished
    made = toy_run((folder / "toy.toml").read_text())
    arch = next(arch for arch in recorded(train_study(made)) if made.network_name(arch) == name)
    last = made.space.placed_blocks(arch)[-1][0].name

    def chosen(module: Any, graph: Any, target: Target, blocks: Any, *_: Any, max_drop: float) -> Choice:
        assert (target.precision, max_drop) == ("int8", 1.0)
        (kept,) = (block for block in blocks if block in (last, f"network.{last}"))
        return Choice((kept,), 40.0, 50.0, False)

    monkeypatch.setattr("hwnas.shipping.choose_in_float", chosen)
    for inside, kept in ((False, last), (True, f"network.{last}")):
        wanted = Wanted(("onnx",), ("int8",), inside=inside, networks=(name,), folder=tmp_path / str(inside))
        (card,) = ship_networks(made, wanted)
        assert (card["in_float"], card["max_drop"], card["within_drop"]) == ([kept], 1.0, False)
        graph = onnx.load(card["path"]).graph
        written = {tensor.name for tensor in graph.initializer}
        (linear,) = (node for node in graph.node if node.op_type == "Gemm")
        assert linear.input[1] in written, "the last layer's weights are floats"
        assert any(node.op_type == "QuantizeLinear" for node in graph.node), "others are in int8"


def test_a_target_gives_the_format_and_checks_the_file_there(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, name = finished
    recipe = str(folder / "toy.toml")
    shown = export(recipe, "--target", "local/onnxruntime:fp16", "--network", name, "-o", str(tmp_path / "out"))
    assert f"{name}.fp16.onnx" in shown
    (card,) = (tmp_path / "out" / "onnx").glob("*/*.json")
    facts = json.loads(card.read_text())
    assert facts["checked_on"]["precision"] == "fp16"
    assert facts["not_checked"] is None
    # A device that is not there: the file is written, and says that it was not checked.
    shown = export(recipe, "--target", "adb:none/ncnn", "--network", name, "-o", str(tmp_path / "out"))
    assert "written, but not checked" in shown
    assert (tmp_path / "out" / "ncnn" / name / f"{name}.ncnn.param").is_file()


def test_nothing_is_written_where_one_of_the_wishes_cannot_be(finished: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = finished
    run = toy_run((folder / "toy.toml").read_text())
    with pytest.raises(ExportError, match="pt2 files are not written in 'int8'"):
        ship_networks(run, Wanted(("onnx", "pt2"), ("int8",), folder=tmp_path))
    with pytest.raises(RunError, match="no trained network 'net-x'; it has net-"):
        ship_networks(run, Wanted(("onnx",), networks=("net-x",), folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("--precision", "int8"), RecipeError, "--precision: of which files"),
        (("--format", "onnx", "--normalise", "maybe"), RecipeError, "inside or outside, not 'maybe'"),
        (("--target", "ncnn", "--format", "onnx"), RecipeError, "--target ncnn runs ncnn, not onnx"),
        (("--target", "torch"), ExportError, "no format is shipped for the runtime 'torch'"),
        (("--target", "litert:int4"), TargetError, "precision must be one of"),
        (("--format", "onnx:fp16"), ExportError, "unknown format 'onnx:fp16'"),
    ],
)
def test_options_that_do_not_go_together_are_told(
    finished: tuple[Path, str], options: tuple[str, ...], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        export(str(finished[0] / "toy.toml"), *options)


def test_a_target_is_a_device_a_runtime_and_a_precision() -> None:
    assert parse_target("litert") == Target("local", "litert", "fp32")
    assert parse_target("ssh:pi@board?python=venv/bin/python/ncnn:int8") == Target(
        "ssh:pi@board?python=venv/bin/python", "ncnn", "int8"
    )
    wanted = wanted_of("ncnn:int8", None, ["fp32", "int8", "fp32"], "outside", None, None)
    assert wanted == Wanted(("ncnn",), ("fp32", "int8"), target=Target("local", "ncnn", "int8"))
    assert wanted_of(None, None, None, "outside", None, None) is None
