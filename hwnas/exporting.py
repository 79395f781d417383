"""The third stage: the front as files, checked, measured again on the target, and reported.

Every network becomes an ONNX file; where the target runs something else (another format, another precision), a file for
it lies beside, and that one is checked on the target and measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hwnas.card import read_card
from hwnas.errors import PredictorError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.native import CALIBRATION, is_native, verify_native, write_native
from hwnas.export.onnx import export_onnx, write_onnx
from hwnas.export.verify import Verification, batches_of, verify_onnx
from hwnas.latency.measure import Measured, measure_files
from hwnas.report.card import write_card_page
from hwnas.report.summary import RunSummary
from hwnas.results import (
    drift_warnings,
    exported_file,
    model_card,
    network_row,
    onnx_file,
    profiled_blocks,
    write_summary,
)
from hwnas.run import Run
from hwnas.space import Arch
from hwnas.train.preprocess import normalise
from hwnas.trained import trained_front, trained_network
from hwprof.client import AgentClient
from hwprof.errors import HwprofError


def export_stage(run: Run) -> RunSummary:
    """Export the front, check the files, measure them again on the target, and write summary and report."""
    run.open_folder()
    warnings: list[str] = []
    front = trained_front(run)
    with run.timed("export"):
        models, verified = {}, {}
        for number, arch in enumerate(front):
            run.progress("export and check", number, len(front))
            models[arch], verified[arch] = _export(run, arch)
        run.progress("export and check", len(front), len(front))
        if is_native(run.target):
            try:
                verified |= _check_on_device(run, front)
            except HwprofError as error:
                warnings.append(f"the exported files were not checked on the device: {error}")
    with run.timed("measure"):
        files = {run.network_name(arch): exported_file(run, arch) for arch in front}
        try:
            measured: dict[str, Measured | str] = {
                **measure_files(
                    files,
                    run.space,
                    run.table,
                    run.device,
                    plan=run.plan,
                    progress=lambda done, total: run.progress("measure exported files", done, total),
                )
            }
        except (HwprofError, PredictorError) as error:  # no such device here, or a table without anchors
            # The files are good; that they could not be measured here is said in their place.
            measured = dict.fromkeys(files, str(error))
            warnings.append(f"the exported files were not measured: {error}")
        on_device = any(isinstance(one, Measured) for one in measured.values())
        profiled = profiled_blocks(run, front) if on_device else {}
    rows = [network_row(run, arch, verified[arch], measured[run.network_name(arch)]) for arch in front]
    for arch, row in zip(front, rows, strict=True):
        card = model_card(run, row, verified[arch], profiled.get(arch))
        write_onnx(models[arch], metadata_of(card), onnx_file(run, arch))
        for file in {onnx_file(run, arch), exported_file(run, arch)}:
            path = write_card(card, file)
            write_card_page(read_card(path), path.with_suffix(".html"))
    return write_summary(run, rows, warnings + _partly_checked(run, verified) + drift_warnings(measured.values()))


def _export(run: Run, arch: Arch) -> tuple[Any, Verification]:
    """Write the ONNX file and the target's own; the ONNX model, and how it did on the test images."""
    module, shape = trained_network(run, arch), run.space.input_shape(arch)
    model = export_onnx(module, shape)
    write_onnx(model, {}, onnx_file(run, arch))
    if is_native(run.target):
        file = exported_file(run, arch)
        calibration = _images(run, run.data.x_train[:CALIBRATION], shape[1])
        write_native(module, shape, run.target, calibration, file)
    batches = batches_of(lambda part: _images(run, run.data.x_test[part], shape[1]), run.data.y_test)
    return model, verify_onnx(onnx_file(run, arch), module, batches)


def _check_on_device(run: Run, front: Sequence[Arch]) -> dict[Arch, Verification]:
    """How the target's own files did on the test images, on the device."""
    verified = {}
    with AgentClient(run.device, run.target) as client:
        for number, arch in enumerate(front):
            run.progress("check on the device", number, len(front))
            size = run.space.input_shape(arch)[1]

            def images(part: slice, size: int = size) -> Tensor:
                return _images(run, run.data.x_test[part], size)

            module = trained_network(run, arch)
            verified[arch] = verify_native(
                client, exported_file(run, arch), module, run.target, images, run.data.y_test
            )
        run.progress("check on the device", len(front), len(front))
    return verified


def _partly_checked(run: Run, verified: dict[Arch, Verification]) -> list[str]:
    """What to say where accuracies are those on a part of the test images."""
    images, available = min(each.images for each in verified.values()), len(run.data.y_test)
    if images == available:
        return []
    return [f"the accuracy of the files is that on the first {images} of {available} test images: more do not travel"]


def _images(run: Run, pixels: Tensor, size: int) -> Tensor:
    return normalise(pixels, run.data.mean, run.data.std, size).contiguous()
