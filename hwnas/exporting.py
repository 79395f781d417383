"""The third stage: the front as files, checked, measured again on the target, and reported.

Every network becomes an ONNX file; where the target runs something else (another format, another precision), a file for
it lies beside, and that one is checked on the target and measured. Of several precisions there is one for each that the
network is on the front in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from hwnas.card import read_card
from hwnas.errors import PredictorError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.folder import remove_unfinished, replaced_folder
from hwnas.export.native import CALIBRATION, is_native, verify_native, write_native
from hwnas.export.onnx import export_onnx, write_onnx
from hwnas.export.sensitive import blocks_of, nodes_in_float
from hwnas.export.verify import Verification, batches_of, verify_onnx
from hwnas.latency.measure import Measured, measure_files
from hwnas.precisions import Member, images_of, kept_in_float
from hwnas.report.card import write_card_page
from hwnas.report.summary import NetworkRow, RunSummary
from hwnas.results import (
    by_measurement,
    drift_warnings,
    export_folder,
    export_lock,
    exported_file,
    model_card,
    network_row,
    on_target,
    onnx_file,
    prediction,
    profiled_blocks,
    write_summary,
)
from hwnas.run import Run
from hwnas.space import Arch
from hwnas.trained import front_members, plainest, trained_network
from hwprof.client import AgentClient
from hwprof.errors import HwprofError
from hwprof.files import companions


def export_stage(run: Run) -> RunSummary:
    """Export the front, check the files, measure them again on the target, and write summary and report.

    Of several precisions, a network of fewer bits is measured beside its file in the plainest, and only offered if it
    is faster. Raises BusyError while another process exports the run.
    """
    run.open_folder()
    warnings: list[str] = []
    front, unforeseen = front_members(run), set[Member]()
    if run.precisions == ("int8",):
        front, unforeseen = _in_int8(run, front)
    # all that is written: the plainest files first, also of networks that are only in another precision on the front
    lower = [member for member in front if member.precision != run.precisions[0]]
    members = list(dict.fromkeys([*(plainest(run, member.arch) for member in lower), *front]))
    members.sort(key=lambda member: member.precision != run.precisions[0])
    # the older files stay until all new ones are there: written, checked, measured, with their cards
    with export_lock(run):
        remove_unfinished(export_folder(run))
        with replaced_folder(export_folder(run), keep=True) as folder:
            rows, verified, measured = _write(run, members, unforeseen, folder, warnings)
    kept, notes = faster_members(run, front, measured)
    notes += [
        f"{run.network_name(member.arch)} is predicted as if all of it were in int8: no table knows what its blocks in "
        'float take; to compare it, profile the same recipe with precision = "fp32"'
        for member in kept
        if member in unforeseen
    ]
    warnings += notes + _beyond_budget(run, kept) + _partly_checked(run, verified) + drift_warnings(measured.values())
    ordered, beaten = by_measurement([rows[member] for member in kept])
    return write_summary(run, ordered, list(dict.fromkeys([*warnings, *beaten])))


def _write(
    run: Run, members: Sequence[Member], unforeseen: set[Member], folder: Path, warnings: list[str]
) -> tuple[dict[Member, NetworkRow], dict[Member, Verification], dict[Member, Measured | str]]:
    """Write, check and measure the files of the front in the folder, each with its card; what was found."""
    parts = {
        precision: [member for member in members if member.precision == precision]
        for precision in run.precisions
        if any(member.precision == precision for member in members)
    }
    with run.timed("export"):
        models, plainly = {}, {}
        for number, member in enumerate(members):
            run.progress("export and check", number, len(members))
            if member.arch not in models:
                models[member.arch], plainly[member.arch] = _export(run, member.arch, folder)
            _export_native(run.at(member.precision), member, folder)
        run.progress("export and check", len(members), len(members))
        verified = {member: plainly[member.arch] for member in members}
        for precision, mine in parts.items():
            if is_native(run.at(precision).target):
                try:
                    verified |= _check_on_device(run.at(precision), mine, folder)
                except HwprofError as error:
                    warnings.append(f"the exported files were not checked on the device: {error}")
    measured: dict[Member, Measured | str] = {}
    profiled: dict[Member, dict[int, float]] = {}
    with run.timed("measure"):
        for precision, mine in parts.items():
            found, times = _measure(run.at(precision), mine, folder, warnings)
            measured |= found
            profiled |= times
    rows = {
        member: network_row(
            run.at(member.precision),
            member.arch,
            verified[member],
            measured[member],
            member if len(run.precisions) > 1 or member.in_float or not member.within_drop else None,
            foreseen=member not in unforeseen,
            folder=folder,
        )
        for member in members
    }
    for member in reversed(members):  # what is plainest has the last word on the ONNX file
        part = run.at(member.precision)
        card = model_card(part, rows[member], verified[member], profiled.get(member))
        write_onnx(models[member.arch], metadata_of(card), onnx_file(run, member.arch, folder))
        for file in {onnx_file(run, member.arch, folder), exported_file(part, member.arch, folder)}:
            path = write_card(card, file, companions(file))
            write_card_page(read_card(path), path.with_suffix(".html"))
    return rows, verified, measured


def _in_int8(run: Run, front: Sequence[Member]) -> tuple[list[Member], set[Member]]:
    """The front of a run in int8 alone, sensitive blocks in float; and those whose prediction knows nothing of it."""
    plain = on_target(run, replace(run.target, precision="fp32"))
    members, unforeseen = [], set()
    for member in front:
        made = kept_in_float(run, member, partial(trained_network, run, member.arch))
        ms, foreseen = float(run.predictor.predict_ms(np.array([member.arch]))[0]), True
        if made.in_float:
            try:
                ms, _ = prediction(run, member.arch, made.in_float, plain)
            except (HwprofError, PredictorError):
                foreseen = False
        members.append(replace(made, latency_ms=ms))
        unforeseen |= set() if foreseen else {members[-1]}
    return members, unforeseen


def faster_members(
    run: Run, front: Sequence[Member], measured: Mapping[Member, Measured | str]
) -> tuple[list[Member], list[str]]:
    """The front without what was measured to be no faster than in the plainest precision, that instead; and why."""
    kept, notes = [], []
    for member in front:
        plain = plainest(run, member.arch)
        own, other = measured[member], measured.get(plain, "")
        if (
            member.precision != plain.precision
            and isinstance(own, Measured)
            and isinstance(other, Measured)
            and not (own.refused or other.refused)
            and own.ms >= other.ms
        ):
            notes.append(
                f"{run.network_name(member.arch)} takes {own.ms:.4g} ms in {member.precision} and {other.ms:.4g} ms in "
                f"{plain.precision}, as measured: it is offered in {plain.precision}"
            )
            member = plain
        kept.append(member)
    return list(dict.fromkeys(kept)), notes


def _export(run: Run, arch: Arch, folder: Path) -> tuple[Any, Verification]:
    """Write the ONNX file; the ONNX model, and how it did on the test images."""
    module, shape = trained_network(run, arch), run.space.input_shape(arch)
    model = export_onnx(module, shape)
    write_onnx(model, {}, onnx_file(run, arch, folder))
    batches = batches_of(lambda part: images_of(run, arch, run.data.x_test[part]), run.data.y_test)
    return model, verify_onnx(onnx_file(run, arch, folder), module, batches)


def _export_native(run: Run, member: Member, folder: Path | None = None) -> None:
    """Write the file that the target runs, where that is another one."""
    if not is_native(run.target):
        return
    module, shape = trained_network(run, member.arch), run.space.input_shape(member.arch)
    blocks = blocks_of(module, shape, run.space.positions) if member.in_float else {}
    calibration = images_of(run, member.arch, run.data.x_train[:CALIBRATION])
    in_float = nodes_in_float(blocks, member.in_float)
    write_native(module, shape, run.target, calibration, exported_file(run, member.arch, folder), in_float)


def _check_on_device(run: Run, members: Sequence[Member], folder: Path) -> dict[Member, Verification]:
    """How the target's own files did on the test images, on the device."""
    verified = {}
    with AgentClient(run.device, run.target) as client:
        for number, member in enumerate(members):
            run.progress("check on the device", number, len(members))

            def images(part: slice, arch: Arch = member.arch) -> Tensor:
                return images_of(run, arch, run.data.x_test[part])

            module = trained_network(run, member.arch)
            verified[member] = verify_native(
                client, exported_file(run, member.arch, folder), module, run.target, images, run.data.y_test
            )
        run.progress("check on the device", len(members), len(members))
    return verified


def _measure(
    run: Run, members: Sequence[Member], folder: Path, warnings: list[str]
) -> tuple[dict[Member, Measured | str], dict[Member, dict[int, float]]]:
    """Files of one precision measured, or why not; and ms of their blocks by position, of those that were profiled."""
    files = {run.network_name(member.arch): exported_file(run, member.arch, folder) for member in members}
    try:
        found: dict[str, Measured | str] = {
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
        found = dict.fromkeys(files, str(error))
        warnings.append(f"the exported files were not measured: {error}")
    on_device = any(isinstance(one, Measured) for one in found.values())
    # graphs to be profiled have no blocks in float
    whole = {member.arch: member for member in members if not member.in_float}
    times = profiled_blocks(run, list(whole)) if on_device and whole else {}
    return (
        {member: found[run.network_name(member.arch)] for member in members},
        {whole[arch]: each for arch, each in times.items()},
    )


def _beyond_budget(run: Run, members: Sequence[Member]) -> list[str]:
    """What to say of networks that lose more accuracy than they may."""
    return [
        f"{run.at(member.precision).label(member.arch)} loses more than the {run.recipe.quantise.max_drop:g} points of "
        "quantise.max_drop, whatever blocks stay in float while that pays"
        for member in members
        if not member.within_drop
    ]


def _partly_checked(run: Run, verified: Mapping[Member, Verification]) -> list[str]:
    """What to say where accuracies are those on a part of the test images."""
    images, available = min(each.images for each in verified.values()), len(run.data.y_test)
    if images == available:
        return []
    return [f"the accuracy of the files is that on the first {images} of {available} test images: more do not travel"]
