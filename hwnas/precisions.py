"""A trained network in each of the recipe's precisions: how accurate, how fast, and whether the device gains.

Post-training quantisation needs no training, so every trained network may be deployed in every precision, and is a
point of accuracy and latency in each. Accuracies are measured on the validation images, in precisions other than fp32
by a simulation (`hwnas/export/simulate.py`); latencies are each precision's table's. Beside plainer precisions, one of
fewer bits is only offered for a network that is predicted faster in it. What samplers are told of a network is its
accuracy as trained and the least of its latencies; the front is that of the points.

Where int8 is the only precision, blocks stay in float all the same (`kept_in_float`): the front is that of the networks
as trained, and its files are what the user gets.

Assessments are in the run folder (precisions.json) as soon as they are made, so that a killed run goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydantic import with_config
from torch import Tensor, nn

from hwnas.errors import DataError, ExportError, PredictorError, RunError, SpaceError
from hwnas.export.graph import graph_of
from hwnas.export.native import CALIBRATION
from hwnas.export.sensitive import Choice, accuracy_of, blocks_of, choose_in_float
from hwnas.export.simulate import simulated
from hwnas.latency.layers import layers_of
from hwnas.run import Run
from hwnas.saved import EXACT, from_text, to_text
from hwnas.space import Arch, format_arch
from hwnas.train.preprocess import normalise
from hwprof.files import write_atomic
from hwprof.lock import Lock

_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Member:
    """A trained network in a precision: accuracy in percent on the validation images and predicted ms.

    `in_float` are names of positions whose blocks stay in float. `within_drop` is False for one that loses more than
    the recipe's quantise.max_drop beside fp32.
    """

    arch: Arch
    precision: str
    accuracy: float
    latency_ms: float
    in_float: tuple[str, ...] = ()
    within_drop: bool = True


@with_config(EXACT)
@dataclass(frozen=True)
class _Book:
    """precisions.json: architecture -> precision -> what was found of it, or why it cannot be in that precision."""

    networks: dict[str, dict[str, Choice | str]]


def offered(run: Run, arch: Arch, accuracy: float, network: Callable[[], nn.Module]) -> list[Member]:
    """A trained network in the precisions that are worth having, within the latency limit as predicted.

    `accuracy` is that of the network as it was trained; it is built and assessed only if that was not done before.
    Raises RunError if the record is damaged.
    """
    members: list[Member] = []
    for precision in run.precisions:
        latency_ms = predicted_ms(run, arch, precision)
        if any(latency_ms >= other.latency_ms for other in members):
            continue
        if precision == "fp32":
            members.append(Member(arch, precision, accuracy, latency_ms))
            continue
        found = assessed(run, arch, precision, network)
        if isinstance(found, str):
            continue
        latency_ms = predicted_ms(run, arch, precision, found.in_float)
        members.append(Member(arch, precision, found.accuracy, latency_ms, found.in_float, found.within_drop))
    return [member for member in members if _keeps_limit(run, member)] or members[-1:]


def kept_in_float(run: Run, member: Member, network: Callable[[], nn.Module]) -> Member:
    """A network of a run in int8 alone, with the blocks that stay in float in its file.

    One that cannot be in int8 at all is as it was: the check of its file says why. Raises what `offered` raises.
    """
    found = assessed(run, member.arch, member.precision, network)
    if isinstance(found, str):
        return member
    return replace(member, in_float=found.in_float, within_drop=found.within_drop)


def predicted_ms(run: Run, arch: Arch, precision: str, in_float: Sequence[str] = ()) -> float:
    """A network's latency in a precision, the blocks at some positions in the plainest one.

    What conversions between the two cost is in no table. Raises PredictorError for blocks that a table has no rows for.
    """
    return mixed_ms(run.at(precision), run.at(run.precisions[0]), arch, in_float)


def mixed_ms(part: Run, plain: Run, arch: Arch, in_float: Sequence[str]) -> float:
    """As `predicted_ms`, of two runs in one precision each."""
    total = float(part.predictor.predict_ms(np.array([arch]))[0])
    if in_float:
        floats, low = _block_ms(plain, arch), _block_ms(part, arch)
        total += sum(floats[position] - low[position] for position in in_float)
    return total


def images_of(run: Run, arch: Arch, pixels: Tensor) -> Tensor:
    """Pixels of the run's data as the network takes them."""
    return normalise(pixels, run.data.mean, run.data.std, run.space.input_shape(arch)[1]).contiguous()


def assessed(run: Run, arch: Arch, precision: str, network: Callable[[], nn.Module]) -> Choice | str:
    """What is on record, or is put there now: a text is why the network cannot be in that precision."""
    name = format_arch(arch)
    found = _read(run).networks.get(name, {}).get(precision)
    if found is None:
        module = network().eval()
        try:
            found = _assess(run, arch, precision, module)
        except (ExportError, SpaceError, DataError) as error:  # numbers beyond halves, say: no other network has that
            found = str(error)
        path = run.folder / "precisions.json"
        with Lock(path.with_suffix(".lock"), "it records precisions of this run", wait_seconds=_LOCK_SECONDS):
            networks = _read(run).networks
            networks[name] = {**networks.get(name, {}), precision: found}
            write_atomic(path, to_text(_Book(networks), RunError, str(path)))
    return found


def _assess(run: Run, arch: Arch, precision: str, module: nn.Module) -> Choice:
    data, shape, max_drop = run.data, run.space.input_shape(arch), run.recipe.quantise.max_drop
    target = run.at(precision).target
    graph = graph_of(module, shape, precision, 1, images_of(run, arch, data.x_train[:CALIBRATION]))

    def images(part: slice) -> Tensor:
        return images_of(run, arch, data.x_valid[part])

    def pays(in_float: Sequence[str]) -> bool:
        if len(run.precisions) == 1:  # nothing plainer is offered that it would have to be faster than
            return True
        try:
            ms = predicted_ms(run, arch, precision, in_float)
        except PredictorError:  # of a network that is not known by its blocks, no mixture is
            return False
        mixed = Member(arch, precision, 0.0, ms)
        return ms < predicted_ms(run, arch, run.precisions[0]) and _keeps_limit(run, mixed)

    if precision == "int8":
        blocks = blocks_of(module, shape, run.space.positions)
        return choose_in_float(module, graph, target, blocks, images, data.y_valid, max_drop=max_drop, worth=pays)
    accuracy, plain = (
        accuracy_of(simulated(module, graph, replace(target, precision=each)), images, data.y_valid)
        for each in (precision, "fp32")
    )
    return Choice((), accuracy, plain, plain - accuracy <= max_drop)


def _keeps_limit(run: Run, member: Member) -> bool:
    limit, confidence = run.recipe.search.latency, run.recipe.search.confidence
    if limit is None or confidence is None:
        return limit is None or member.latency_ms <= limit
    predictor, matrix = run.at(member.precision).predictor, np.array([member.arch])
    above = float(predictor.upper_ms(matrix, confidence)[0] / predictor.predict_ms(matrix)[0])
    return member.latency_ms * above <= limit


def _block_ms(run: Run, arch: Arch) -> dict[str, float]:
    """Position -> ms of the table's row."""
    found = {layer.position: layer.ms for layer in layers_of(run.space, run.table, arch) if layer.ms is not None}
    if not found:
        raise PredictorError(f"{run.table_path} has no rows for the blocks of {format_arch(arch)}; profile the device")
    return found


def _read(run: Run) -> _Book:
    path = run.folder / "precisions.json"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return _Book({})
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged ({error}); delete it, its networks are then assessed again") from error
    return from_text(_Book, text, RunError, str(path))
