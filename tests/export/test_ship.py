"""Networks shipped in a format: the folder that a stranger gets, and what failures leave of an older one."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.errors import ExportError, HwnasError, MissingPackageError
from hwnas.export.exporter import (
    EXPORTERS,
    RUNTIME_FORMATS,
    Exporter,
    ExportSpec,
    format_for,
    make_exporter,
    require_precision,
)
from hwnas.export.formats.onnx import OnnxExporter
from hwnas.export.normalise import with_normalisation
from hwnas.export.ship import check_here, ship
from hwprof.errors import DeviceError
from hwprof.target import Target

CARD = {"name": "net", "classes": ["cat", "dog", "bird"], "input": {"normalise": "outside"}, "recipe": "a long text"}
SHAPE = (1, 6, 6)
EXAMPLES = Path(__file__).parents[2] / "hwnas" / "export" / "examples"


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*layers).eval()


def shipped(
    exporter: Exporter, folder: Path, module: nn.Module, checked: nn.Module | None = None, precision: str = "fp32"
) -> dict[str, Any]:
    images = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 2, 0, 1])
    spec = ExportSpec(SHAPE, precision, calibration=images)

    def check(path: Path) -> Any:
        return check_here(exporter, checked or module, precision, {"test": (images.__getitem__, labels)}, path)

    return ship(exporter, module, spec, folder, "net", CARD, check)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_the_file_its_card_and_an_example(tmp_path: Path) -> None:
    card = shipped(OnnxExporter(), tmp_path, network(), precision="int8")
    path = Path(card["path"])
    assert path == tmp_path / "onnx" / "net.int8" / "net.int8.onnx"
    assert {each.name for each in path.parent.iterdir()} == {path.name, f"{path.name}.json", "run.py"}
    written = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert written["size_bytes"] == card["size_bytes"] == path.stat().st_size
    assert (written["format"], written["precision"], written["largest_batch"]) == ("onnx", "int8", None)
    assert written["input"]["shape"] == ["batch", *SHAPE]
    assert written["accuracy_percent"].keys() == written["module_accuracy_percent"].keys() == {"test"}
    assert written["checked_images"] == {"test": 5}
    assert written["not_checked"] is None
    inside = OnnxExporter().read_metadata(path)
    assert json.loads(inside["hwnas.classes"]) == CARD["classes"]
    assert "hwnas.recipe" not in inside  # the card has it; a file for a phone need not


def test_files_that_belong_together_are_in_the_card_and_shapes_are_those_of_the_file(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    card = shipped(make_exporter("ncnn"), tmp_path, network())
    written = json.loads(Path(card["path"] + ".json").read_text())
    assert [each["file"] for each in written["beside"]] == ["net.ncnn.bin"]
    assert card["size_bytes"] == written["size_bytes"] + written["beside"][0]["size_bytes"]
    pytest.importorskip("ai_edge_litert")
    card = shipped(make_exporter("tflite"), tmp_path, network())
    assert card["input"]["shape"] == ["batch", 6, 6, 1]


def test_a_file_that_fails_its_check_does_not_replace_a_good_one(tmp_path: Path) -> None:
    folder = Path(shipped(OnnxExporter(), tmp_path, network())["path"]).parent
    before = content(folder)
    with pytest.raises(ExportError, match=r"net\.onnx differs from its network by"):
        shipped(OnnxExporter(), tmp_path, network(1), checked=network(2))
    assert content(folder) == before
    shipped(OnnxExporter(), tmp_path, network(1))
    assert content(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("error", [MissingPackageError("no runtime"), DeviceError("no GPU")])
def test_a_file_that_cannot_be_checked_here_is_written_and_says_so(tmp_path: Path, error: Exception) -> None:
    class Unchecked(OnnxExporter):
        def load(self, path: Path, precision: str) -> Any:
            raise error

    card = shipped(Unchecked(), tmp_path, network())
    assert (card["not_checked"], card["accuracy_percent"], card["max_logit_difference"]) == (str(error), {}, None)


@contextmanager
def disk_with(size: int) -> Iterator[None]:
    """Files of this process cannot grow beyond that many bytes: the system's own error, in any library that writes."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
@pytest.mark.parametrize("name", ["onnx", "tflite", "ncnn", "openvino", "ort"])
def test_a_full_disk_leaves_the_older_files_whole(tmp_path: Path, name: str) -> None:
    exporter = make_exporter(name)
    try:
        folder = Path(shipped(exporter, tmp_path, network())["path"]).parent
    except MissingPackageError as error:
        pytest.skip(str(error))
    before = content(folder)
    for size in (0, 60, max(map(len, before.values())) - 10):
        with disk_with(size), pytest.raises((OSError, HwnasError)):
            shipped(exporter, tmp_path, network(1))
        assert content(folder) == before


@pytest.mark.parametrize("name", EXPORTERS)
def test_every_format_has_an_example_of_twenty_lines(name: str) -> None:
    text = (EXAMPLES / f"run_{name}.py").read_text()
    code = [line for line in text.splitlines()[1:] if line.strip() and not line.startswith("#")]
    assert len(code) <= (24 if name == "tensorrt" else 20)  # memory of a GPU is got and filled by hand
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [module for module in imported if module.split(".")[0] in ("hwnas", "hwprof")]


@dataclass(frozen=True)
class NotInstalled:
    """What an import statement meets where a package is not installed."""

    names: tuple[str, ...]

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}")


@pytest.mark.parametrize(
    ("name", "modules", "install"),
    [
        ("tensorrt", ("tensorrt",), "pip install tensorrt"),
        ("tflite", ("ai_edge_litert", "hwnas.graphs.tflite"), "pip install ai-edge-litert"),
        ("openvino", ("openvino",), "pip install openvino"),
        ("pte", ("executorch",), "pip install executorch"),
    ],
)
def test_a_format_whose_package_is_missing_says_what_to_install(
    name: str, modules: tuple[str, ...], install: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [each for each in sys.modules if each.startswith((*modules, "hwprof.runtimes.tensorrt"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(modules), *sys.meta_path])
    with pytest.raises(MissingPackageError, match=install):
        make_exporter(name).write(network(), ExportSpec(SHAPE), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_precisions_and_runtimes_are_told() -> None:
    with pytest.raises(ExportError, match="unknown format 'onxx'; known: onnx, tensorrt"):
        make_exporter("onxx")
    with pytest.raises(ExportError, match="pte files are not written in 'int8'; they are in fp32"):
        require_precision(make_exporter("pte"), "int8")
    with pytest.raises(ExportError, match="no format is shipped for the runtime 'torch'"):
        format_for(Target(runtime="torch"))
    assert set(RUNTIME_FORMATS.values()) <= set(EXPORTERS)
    assert format_for(Target(runtime="litert")) == "tflite"
    with pytest.raises(ExportError, match="int8 activations are ranged on images"):
        OnnxExporter().write(network(), ExportSpec(SHAPE, "int8"), Path("net.onnx"))


def test_normalisation_inside_takes_pixels() -> None:
    mean, std = (0.4, 0.5), (0.2, 0.3)
    module = nn.Conv2d(2, 3, 3, padding=1).eval()
    pixels = torch.randint(0, 256, (4, 2, 5, 5), generator=torch.Generator().manual_seed(0))
    columns = torch.tensor([mean, std])[:, :, None, None]
    with torch.no_grad():
        expected = module((pixels / 255 - columns[0]) / columns[1])
        found = with_normalisation(module, mean, std)(pixels.float())
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(with_normalisation(module, std, mean)(pixels.float()), expected, atol=1e-5)
    assert with_normalisation(module.train(), mean, std).training


def test_aotinductor_is_given_the_program_and_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a stand-in for the compiler, which takes half a minute; the conformance suite runs it if asked to."""

    def compiled(program: Any, *, package_path: str, inductor_configs: dict[str, Any]) -> str:
        with torch.no_grad():
            logits = program.module()(torch.ones(3, *SHAPE))  # any batch
        Path(package_path).write_bytes(logits.numpy().tobytes())
        assert inductor_configs == {"aot_inductor.metadata": {"hwnas.name": "net"}}
        return package_path

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", compiled)
    module = network().train()
    spec = ExportSpec(SHAPE, metadata={"hwnas.name": "net"})
    make_exporter("pt2").write(module, spec, tmp_path / "net.pt2")
    with torch.no_grad():
        written = np.frombuffer((tmp_path / "net.pt2").read_bytes(), np.float32).reshape(3, 3)
        assert np.allclose(written, module(torch.ones(3, *SHAPE)).numpy())
    assert module.training

    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("g++ is not there")

    monkeypatch.setattr("torch._inductor.aoti_compile_and_package", failing)
    with pytest.raises(ExportError, match=r"needs a C\+\+ compiler.*g\+\+ is not there"):
        make_exporter("pt2").write(module, spec, tmp_path / "net.pt2")
    (tmp_path / "bad.pt2").write_bytes(b"no package")
    with pytest.raises(ExportError, match=r"bad\.pt2 cannot be loaded"):
        make_exporter("pt2").load(tmp_path / "bad.pt2", "fp32")
