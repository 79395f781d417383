"""Networks of a finished search in formats of the user's choice, each checked and in a folder of its own.

The export stage writes what the run's own target runs, and measures that; here it is any trained network in any format
and precision, checked on any device, and not measured. In int8, blocks stay in float where the file would otherwise
lose more than the recipe's quantise.max_drop, as a simulation has it; the card says which, and whether that was enough.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hwnas.errors import RunError
from hwnas.export.exporter import RUNTIME_FORMATS, Exporter, ExportSpec, make_exporter, require_precision
from hwnas.export.graph import graph_of
from hwnas.export.native import CALIBRATION, verify_native
from hwnas.export.normalise import with_normalisation
from hwnas.export.sensitive import blocks_of, choose_in_float, nodes_in_float
from hwnas.export.ship import Split, check_here, ship
from hwnas.export.verify import Verification
from hwnas.results import network_card
from hwnas.run import Run, train_study
from hwnas.search.study import recorded
from hwnas.space import Arch, Position
from hwnas.train.preprocess import normalise, resize
from hwnas.trained import trained_front, trained_network
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.target import Target


@dataclass(frozen=True)
class Wanted:
    """What to ship: every format in every precision.

    `inside`: files take pixels, 0 to 255, and normalise them. Files are checked on the `target` (its device and its
    runtime; the rest is the recipe's), or in their own runtimes on this machine. `networks` are names; none: the front.
    `folder`: instead of the run's own.
    """

    formats: tuple[str, ...]
    precisions: tuple[str, ...] = ("fp32",)
    inside: bool = False
    target: Target | None = None
    networks: tuple[str, ...] = ()
    folder: Path | None = None


def ship_networks(run: Run, wanted: Wanted) -> list[dict[str, Any]]:
    """Write, check and show all that is wanted; the cards, with `path` and `size_bytes` of each file.

    Raises ExportError for a format or a precision that is not there, before anything is written, and what `ship`
    raises; RunError for a network that was not trained.
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
    shown = []
    for number, (arch, exporter, precision) in enumerate(jobs):
        run.progress("export and check", number, len(jobs))
        shown.append(_ship(run, arch, exporter, precision, wanted))
    run.progress("export and check", len(jobs), len(jobs))
    return shown


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
        inner = (replace(position, name=f"network.{position.name}") for position in positions)
        positions = (Position("normalise", ()), *inner)
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
        target = replace(wanted.target, batch=run.target.batch, threads=run.target.threads, precision=precision)
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
    name = run.network_name(arch)
    return ship(exporter, module, spec, wanted.folder or run.folder / "export", name, card, check)


def _check_there(target: Target, module: nn.Module, splits: dict[str, Split], path: Path) -> dict[str, Verification]:
    """How a file does on a target, by the agent there."""
    with AgentClient(make_device(target.device), target) as client:
        return {
            split: verify_native(client, path, module, target, images, labels)
            for split, (images, labels) in splits.items()
        }


def _taken(run: Run, size: int, inside: bool, pixels: Tensor) -> Tensor:
    """(n, channels, height, width) uint8 -> the images as the module takes them, size x size."""
    if inside:
        return resize(pixels, size).float()
    return normalise(pixels, run.data.mean, run.data.std, size).contiguous()
