"""The shipped conformance suite of export formats: on every format whose packages are here, and on broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from torch import nn

from hwnas.export.exporter import EXPORTERS, ExportSpec, Infer, make_exporter
from hwnas.export.formats.onnx import OnnxExporter
from hwnas.testing.exporters import SPACES, check_exporter, why_not

CASES = [(name, precision) for name in EXPORTERS for precision in make_exporter(name).precisions]
# Networks of all spaces are written from one plain graph or by torch's exporter: one format of each is enough.
EVERY_SPACE = {"onnx", "tflite"}
# After OpenVINO ran a model of any batch, a signal that Python handles ends its process; other tests set alarms.
ALONE = {"openvino"}


@pytest.mark.parametrize(("name", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_formats_keep_their_contract(name: str, precision: str) -> None:
    if name == "pt2" and not os.environ.get("HWNAS_SLOW"):
        pytest.skip("AOTInductor's C++ compiler takes half a minute a network; set HWNAS_SLOW=1 to run it")
    exporter = make_exporter(name)
    if (reason := why_not(exporter, precision)) is not None:
        pytest.skip(reason)
    spaces = list(SPACES) if precision == "fp32" and name in EVERY_SPACE else ["mobilenetv3"]
    if name not in ALONE:
        check_exporter(exporter, precision, spaces=spaces)
        return
    code = (
        "from hwnas.export.exporter import make_exporter\nfrom hwnas.testing.exporters import check_exporter\n"
        f"check_exporter(make_exporter({name!r}), {precision!r}, spaces={spaces!r})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr


class Broken(OnnxExporter):
    """A right one, whose model a subclass changes."""

    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        super().write(module, spec, path)
        model = onnx.load(path)
        self.change(model)
        onnx.save(model, path)

    def change(self, model: onnx.ModelProto) -> None:
        pass


class OtherWeights(Broken):
    def change(self, model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda each: len(each.dims))
        array = onnx.numpy_helper.to_array(weight)
        weight.CopyFrom(onnx.numpy_helper.from_array(array * array.dtype.type(1.5), weight.name))


class NoMetadata(Broken):
    def change(self, model: onnx.ModelProto) -> None:
        classes = next(each for each in model.metadata_props if each.key == "hwnas.classes")
        model.metadata_props.remove(classes)


class OtherLabels(Broken):
    def change(self, model: onnx.ModelProto) -> None:
        classes = next(each for each in model.metadata_props if each.key == "hwnas.classes")
        classes.value = classes.value.replace("digit", "number")


class OneImageOnly(Broken):
    def change(self, model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


class NoLimit(Broken):
    largest_batch: Any = 4


class LeavesAFile(Broken):
    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        super().write(module, spec, path)
        path.with_name("notes.txt").write_text("a note")


class LeavesTheModuleInEvaluation(Broken):
    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        super().write(module.eval(), spec, path)


class ChangesTheModule(Broken):
    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        super().write(module, spec, path)
        for parameter in module.parameters():
            parameter.data.zero_()


class AnyPrecision(OnnxExporter):
    def write(self, module: nn.Module, spec: ExportSpec, path: Path) -> None:
        super().write(module, ExportSpec(spec.input_shape, metadata=spec.metadata), path)


class DamageIsNoError(OnnxExporter):
    def load(self, path: Path, precision: str) -> Infer:
        if path.stat().st_size < 1000:
            raise KeyError("graph")
        return super().load(path, precision)


BROKEN = [
    (OtherWeights, "net.onnx differs from its network by"),
    (NoMetadata, "the example of onnx fp32 .* fails: .*hwnas.classes"),
    (OtherLabels, "the example of onnx fp32 .* says .'number .*normalisation or labels differ"),
    (OneImageOnly, "cannot be run"),
    (NoLimit, "takes 5 images, its largest_batch is 4"),
    (LeavesAFile, "notes.txt.*, its suffixes say"),
    (LeavesTheModuleInEvaluation, "leaves the module in another mode"),
    (ChangesTheModule, "changes the module's weights|differs from its network"),
    (AnyPrecision, "writing onnx in fp7 must be an ExportError"),
    (DamageIsNoError, "running onnx files of 0 bytes .* must be an ExportError, got KeyError"),
]


@pytest.mark.parametrize(("kind", "message"), BROKEN, ids=[kind.__name__ for kind, _ in BROKEN])
def test_a_broken_format_is_caught(kind: type[OnnxExporter], message: str) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=f"(?s){message}"):
        check_exporter(kind(), "fp32", spaces=["nasbench201"])
