"""Networks of a finished search in formats of the user's choice, each checked and in a folder of its own.

The export stage writes what the run's own target runs; here it is any trained network in any format and precision,
checked on any device. In int8, blocks stay in float where the file would otherwise lose more than the recipe's
quantise.max_drop, as a simulation has it; the card says which, and whether that was enough.

When all are written, files in the format that the target runs are measured there, in their precision: beside the
anchors of the target's latency table, and compared with the prediction; without a table each as the device runs now,
and compared with nothing. A normalisation inside a file is in the measurement and not in the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hwnas.card import Interval
from hwnas.errors import PredictorError, RunError
from hwnas.export.card import add_to_card
from hwnas.export.exporter import RUNTIME_FORMATS, Exporter, ExportSpec, make_exporter, require_precision
from hwnas.export.graph import graph_of
from hwnas.export.native import CALIBRATION, verify_native
from hwnas.export.normalise import with_normalisation
from hwnas.export.sensitive import blocks_of, choose_in_float, nodes_in_float
from hwnas.export.ship import Split, check_here, ship
from hwnas.export.verify import Verification
from hwnas.latency.measure import GROUP, STANDARD_ERRORS, Measured, measure_files, measure_group, split_evenly
from hwnas.report.deployable import beside_interval, judge
from hwnas.results import MEASURED_CONFIDENCE, drift_warnings, export_lock, network_card, on_target, prediction
from hwnas.run import Run, train_study
from hwnas.search.study import recorded
from hwnas.space import Arch, Position
from hwnas.train.preprocess import normalise, resize
from hwnas.trained import trained_front, trained_network
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import HwprofError, TableError
from hwprof.runtimes import require_runnable
from hwprof.target import Target

# Positions of a network with its normalisation inside: that, and those of the network itself.
NORMALISE, INSIDE = "normalise", "network."


@dataclass(frozen=True)
class Wanted:
    """What to ship: every format in every precision.

    `inside`: files take pixels, 0 to 255, and normalise them. Files are checked on the `target` (its device and its
    runtime; the rest is the recipe's), or in their own runtimes on this machine; they are measured on it, or on the
    recipe's. `networks` are names; none: the front. `folder`: instead of the run's own.
    """

    formats: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    inside: bool = False
    target: Target | None = None
    networks: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class _Shipped:
    """A written file with its card; `target` is where it is to be measured, or why it is not."""

    arch: Arch
    card: dict[str, Any]
    target: Target | str


def ship_networks(run: Run, wanted: Wanted) -> list[dict[str, Any]]:
    """Write, check, show and measure all that is wanted; the cards, with `path` and `size_bytes` of each file.

    Raises ExportError for a format or a precision that is not there, before anything is written, and what `ship`
    raises; RunError for a network that was not trained, BusyError while another process exports the run.
    """
    run.open_folder()
    exporters = [make_exporter(name) for name in wanted.formats]
    for exporter in exporters:
        for precision in wanted.precisions:
            require_precision(exporter, precision)
    jobs = [
        (arch, exporter, precision)
        for arch in _chosen(run, wanted.networks)
        for exporter in exporters
        for precision in wanted.precisions
    ]
    with nullcontext() if wanted.folder else export_lock(run):
        return _ship_all(run, wanted, jobs)


def _ship_all(run: Run, wanted: Wanted, jobs: Sequence[tuple[Arch, Exporter, str]]) -> list[dict[str, Any]]:
    shipped = []
    for number, (arch, exporter, precision) in enumerate(jobs):
        run.progress("export and check", number, len(jobs))
        card = _ship(run, arch, exporter, precision, wanted)
        shipped.append(_Shipped(arch, card, _where_measured(run, exporter, precision, wanted)))
    run.progress("export and check", len(jobs), len(jobs))
    found = _measured(run, shipped)
    for each in shipped:
        facts = found[each.card["path"]]
        add_to_card(Path(each.card["path"]), facts)
        each.card.update(facts)
    return [each.card for each in shipped]


def _chosen(run: Run, names: tuple[str, ...]) -> list[Arch]:
    if not names:
        return trained_front(run)
    trained = {run.network_name(arch): arch for arch in recorded(train_study(run))}
    for name in names:
        if name not in trained:
            raise RunError(f"{run.folder} has no trained network {name!r}; it has {', '.join(trained) or 'none'}")
    return [trained[name] for name in names]


def _ship(run: Run, arch: Arch, exporter: Exporter, precision: str, wanted: Wanted) -> dict[str, Any]:
    data, shape = run.data, run.space.input_shape(arch)
    module, positions = trained_network(run, arch), run.space.positions
    if wanted.inside:
        module = with_normalisation(module, data.mean, data.std)
        inner = (replace(position, name=INSIDE + position.name) for position in positions)
        positions = (Position(NORMALISE, ()), *inner)
    taken = partial(_taken, run, shape[1], wanted.inside)
    spec = ExportSpec(shape, precision, run.target.batch, taken(data.x_train[:CALIBRATION]))
    splits: dict[str, Split] = {
        "validation": (lambda part: taken(data.x_valid[part]), data.y_valid),
        "test": (lambda part: taken(data.x_test[part]), data.y_test),
    }
    card = network_card(run, arch)
    card["input"]["resize"] = "bilinear with antialias, rounded to 8 bits"
    card["input"]["normalise"] = "inside" if wanted.inside else "outside"
    if wanted.inside:
        card["input"]["scale"] = "pixels, 0 to 255, as they are"
    if wanted.target is None:
        check = partial(check_here, exporter, module, precision, splits)
    else:
        target = _target(run, wanted.target, precision)
        card["checked_on"] = asdict(target)
        check = partial(_check_there, target, module, splits)
    if precision == "int8":
        runtime = next((key for key, name in RUNTIME_FORMATS.items() if name == exporter.name), "onnxruntime")
        simulated = Target(runtime=wanted.target.runtime if wanted.target else runtime, precision=precision)
        blocks, max_drop = blocks_of(module, shape, positions), run.recipe.quantise.max_drop
        graph = graph_of(module, shape, precision, 1, spec.calibration)
        found = choose_in_float(module, graph, simulated, blocks, *splits["validation"], max_drop=max_drop)
        spec = replace(spec, in_float=nodes_in_float(blocks, found.in_float))
        card |= {"in_float": list(found.in_float), "max_drop": max_drop, "within_drop": found.within_drop}
    card["not_measured"] = "the export ended before"
    name = run.network_name(arch)
    return ship(exporter, module, spec, wanted.folder or run.folder / "export", name, card, check)


def _check_there(target: Target, module: nn.Module, splits: dict[str, Split], path: Path) -> dict[str, Verification]:
    """How a file does on a target, by the agent there."""
    with AgentClient(make_device(target.device), target) as client:
        return {
            split: verify_native(client, path, module, target, images, labels)
            for split, (images, labels) in splits.items()
        }


def _target(run: Run, given: Target, precision: str) -> Target:
    """The device and the runtime given, the rest as in the recipe."""
    mine, same = run.target, given.runtime == run.target.runtime
    level = mine.optimisation if same else given.optimisation  # its options are those of a runtime
    return replace(given, batch=mine.batch, threads=mine.threads, precision=precision, optimisation=level)


def _where_measured(run: Run, exporter: Exporter, precision: str, wanted: Wanted) -> Target | str:
    """The target that a file is measured on; a text is why on none."""
    base = wanted.target or run.target
    if RUNTIME_FORMATS.get(base.runtime) != exporter.name:
        return f"{base.runtime} on {base.device} is not known to run {exporter.name} files; --target names what does"
    most, batch = exporter.largest_batch, run.target.batch
    if most is not None and batch > most:
        return f"{exporter.name} files take batches of at most {most}, the recipe's target has batches of {batch}"
    target = _target(run, base, precision)
    try:
        require_runnable(target)
    except HwprofError as error:
        return str(error)
    return target


def _measured(run: Run, shipped: list[_Shipped]) -> dict[str, dict[str, Any]]:
    """Path of each file -> what its card says of its latency."""
    facts: dict[str, dict[str, Any]] = {}
    for target in dict.fromkeys(each.target for each in shipped):
        mine = [each for each in shipped if each.target == target]
        if isinstance(target, str):
            facts |= {each.card["path"]: _latency(run, each, target, None) for each in mine}
            continue
        part = on_target(run, target)
        found, alone = _measure_on(part, {each.card["path"]: Path(each.card["path"]) for each in mine})
        facts |= {each.card["path"]: _latency(run, each, found[each.card["path"]], part, alone) for each in mine}
    return facts


def _measure_on(part: Run, files: Mapping[str, Path]) -> tuple[Mapping[str, Measured | str], str | None]:
    """Each file measured, or why not; and, if that was without a table, why."""
    alone = None
    progress = partial(part.progress, f"measure in {part.target.precision}")
    try:
        try:
            found = measure_files(files, part.space, part.table, part.device, plan=part.plan, progress=progress)
        except (TableError, PredictorError) as error:
            alone = f"measured as the device runs now, not beside the anchors of a table: {error}"
            found = _measure_alone(part, files)
    except HwprofError as error:
        return dict.fromkeys(files, str(error)), None
    return found, alone


def _measure_alone(part: Run, files: Mapping[str, Path], attempts: int = 3) -> dict[str, Measured]:
    """Files beside each other and no anchors: milliseconds as the device runs now; refused ones are tried again."""
    found: dict[str, Measured] = {}
    with AgentClient(part.device, part.target) as client:
        for attempt in range(attempts):
            pending = [name for name in files if name not in found or found[name].refused]
            for names in split_evenly(pending, GROUP):
                group = measure_group(client, {name: files[name] for name in names}, {}, part.plan, seed=attempt)
                for one in group.results:  # without anchors, ratios are milliseconds
                    margin = one.ratio * min(1.0, STANDARD_ERRORS * one.standard_error)
                    bounds = one.ratio - margin, one.ratio + margin
                    found[one.name] = Measured(one.name, one.ratio, *bounds, one.wall_ms, 0.0, one.refused)
    return found


def _latency(
    run: Run, shipped: _Shipped, found: Measured | str, part: Run | None, alone: str | None = None
) -> dict[str, Any]:
    """What a card says of a file's latency; `found` may be why it was not measured, `alone` why without a table."""
    card, limit = shipped.card, run.recipe.search.latency
    refused = found if isinstance(found, str) else found.refused
    facts: dict[str, Any] = {"latency_limit_ms": limit, "not_measured": refused}
    within_limit: bool | None = None
    if part is not None and isinstance(found, Measured) and not refused:
        within_limit = None if limit is None else found.ms <= limit
        facts |= {
            "measured_ms": found.ms,
            "measured_interval_ms": [found.low_ms, found.high_ms],
            "measured_confidence": MEASURED_CONFIDENCE,
            "warnings": drift_warnings([found]),
        }
        facts |= _predicted(run, shipped, part, alone)
        facts["outside_interval"] = beside_interval(found.ms, *facts["predicted_interval_ms"])
    unknown = [f"not measured: {refused}"] if refused else []
    unknown += [f"not checked: {card['not_checked']}"] if card["not_checked"] else []
    verdict = judge(within_limit, card.get("within_drop", True), "; ".join(unknown) or None)
    return {
        **facts,
        "within_limit": within_limit,
        "deployable": verdict.deployable,
        "not_deployable": verdict.reason,
    }


def _predicted(run: Run, shipped: _Shipped, part: Run, alone: str | None) -> dict[str, Any]:
    """The prediction that a measurement is compared with, of the target that it was made on; or why there is none."""
    about = network_card(part, shipped.arch)
    facts = {key: about[key] for key in ("table", "layers", "other_ms", "predicted_confidence")}
    own = part.target.precision in run.precisions and part is run.at(part.target.precision)
    facts["target" if own else "measured_on"] = {**about["target"], **part.fingerprint}
    in_float = [name.removeprefix(INSIDE) for name in shipped.card.get("in_float", ()) if name != NORMALISE]
    ms: float | None = None
    bounds: Interval = (None, None)
    if alone is None:
        try:
            plain = on_target(run, replace(part.target, precision="fp32"))
            ms, bounds = prediction(part, shipped.arch, in_float, plain)
        except (HwprofError, PredictorError) as error:
            alone = f"blocks in float are not in this table: {error}"
    return {**facts, "predicted_ms": ms, "predicted_interval_ms": list(bounds), "not_compared": alone}


def _taken(run: Run, size: int, inside: bool, pixels: Tensor) -> Tensor:
    """(n, channels, height, width) uint8 -> the images as the module takes them, size x size."""
    if inside:
        return resize(pixels, size).float()
    return normalise(pixels, run.data.mean, run.data.std, size).contiguous()
