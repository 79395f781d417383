"""What lower precision costs and buys: every runtime that works here, in every precision that it has.

    python benchmarks/precision.py --rounds 7

For a few networks of both search spaces: the time of one inference, as a multiple of the same runtime's fp32, and how
far the outputs are from those of the module. A runtime's precisions each have an agent of their own, opened at once,
and take turns: every round measures all networks in one precision after the other, interleaved within a precision, and
a multiple is taken within its round; the table has the median over the rounds and half the range of the middle half of
them. Weights are random, batch normalisation has the statistics of random images, and the ranges of int8 are those of
the very images that outputs are compared on. Differences are root mean squares, relative to that of the module's
outputs; untrained networks amplify rounding, so they say whether a file computes its module, not what accuracy is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hwnas.errors import HwnasError
from hwnas.graphs import suffix_of
from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.testing.runtimes import relative_difference, write_module
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import HwprofError
from hwprof.runtimes import RUNTIMES
from hwprof.target import Plan, Target

REFERENCE = "fp32"
IMAGES = 8
# Slower than fp32 by more than this is said to be slower.
SLOWER = 1.03


@dataclass(frozen=True)
class Network:
    """A network in evaluation mode, and random images that it is ranged and compared on."""

    name: str
    module: nn.Module
    images: Tensor


@dataclass
class Found:
    """One network in one runtime and precision: times by round, in ms, and multiples of fp32 in the same round.

    `refused` are the reasons of the rounds in which the machine was too busy for a table; the multiples bear it.
    """

    network: str
    runtime: str
    precision: str
    ms: list[float] = field(default_factory=list)
    times_fp32: list[float] = field(default_factory=list)
    difference: float | None = None
    refused: list[str] = field(default_factory=list)


def networks(batch: int) -> list[Network]:
    """The smallest and the largest of `mobilenetv3`, two of `nasbench201`: 3x3 convolutions only, and a random one."""
    mobile, cells = MobileNetV3Space(), NasBench201Space()
    (mixed,) = rows_of(cells.sample(1, np.random.default_rng(5)))
    convolutions = tuple(list(slot.options).index("nor_conv_3x3") for slot in cells.slots)
    chosen: list[tuple[str, SearchSpace, Arch]] = [
        ("mobilenetv3 small", mobile, (0,) * len(mobile.slots)),
        ("mobilenetv3 large", mobile, tuple(len(slot.options) - 1 for slot in mobile.slots)),
        ("nasbench201 3x3", cells, convolutions),
        ("nasbench201 mixed", cells, mixed),
    ]
    return [Network(name, *settled(space, space.check(arch), batch)) for name, space, arch in chosen]


def settled(space: SearchSpace, arch: Arch, batch: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights, its batch normalisation with the statistics of random images; and such images."""
    torch.manual_seed(0)
    module = space.build(arch)
    images = torch.randn(IMAGES * batch, *space.input_shape(arch))
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the average over all batches, of which there is one
    module.train()
    with torch.no_grad():
        module(images)
    return module.eval(), images


def measured(
    runtime: str, chosen: Sequence[Network], options: argparse.Namespace, out: Console
) -> tuple[list[Found], dict[str, str]]:
    """All networks in all precisions of one runtime that can be opened, and the machine; what cannot is said."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hwnas-precision-")))
        clients: dict[str, AgentClient] = {}
        for precision in RUNTIMES[runtime].precisions:
            target = Target(options.device, runtime, precision, options.batch, options.threads)
            try:
                clients[precision] = stack.enter_context(AgentClient(make_device(options.device), target))
            except HwprofError as error:
                out.print(f"{runtime} {precision}: not here: {error}", soft_wrap=True, highlight=False)
        files: dict[str, dict[str, Path]] = {}
        found: dict[tuple[str, str], Found] = {}
        for precision, client in list(clients.items()):
            try:
                files[precision] = dict(written(chosen, client, folder, runtime, precision, options.batch))
            except (HwprofError, HwnasError) as error:
                out.print(f"{runtime} {precision}: fails: {error}", soft_wrap=True, highlight=False)
                continue
            for network in chosen:
                each = Found(network.name, runtime, precision)
                found[network.name, precision] = each
                each.difference = difference(network, client, files[precision][network.name], folder)
        for number in range(options.rounds):
            for precision, models in files.items():
                group = clients[precision].measure(models, {}, options.plan, seed=number)
                for result in group.results:
                    # Without anchors a ratio is milliseconds.
                    found[result.name, precision].ms.append(result.ratio)
                    found[result.name, precision].refused += [result.refused] if result.refused else []
            for (name, _), each in found.items():
                reference = found.get((name, REFERENCE))
                if reference is not None:
                    each.times_fp32.append(each.ms[-1] / reference.ms[-1])
        machine: dict[str, str] = {}
        for client in clients.values():
            machine, versions = client.ready["identity"], ", ".join(client.ready["versions"].values())
        if clients:
            out.print(f"{runtime}: {versions}", soft_wrap=True, highlight=False)
        return [found[network.name, precision] for network in chosen for precision in files], machine


def written(
    chosen: Sequence[Network], client: AgentClient, folder: Path, runtime: str, precision: str, batch: int
) -> Iterator[tuple[str, Path]]:
    """The networks' files in a runtime's format, by the networks' names."""
    target = Target(runtime=runtime, precision=precision, batch=batch)
    for number, network in enumerate(chosen):
        path = folder / f"{precision}-{number}{suffix_of(target)}"
        write_module(network.module, network.images, target, path)
        yield network.name, path


def difference(network: Network, client: AgentClient, file: Path, folder: Path) -> float:
    """How far a file's outputs on the device are from the module's."""
    np.save(folder / "images.npy", network.images.numpy())
    (output,) = client.infer(file, [folder / "images.npy"])
    return relative_difference(network.module, network.images, np.frombuffer(output.data, "<f4").reshape(output.shape))


def show(found: Sequence[Found], out: Console) -> None:
    """Print the table, and what is slower than fp32."""
    table = Table(title=f"one inference, {REFERENCE} of the same runtime is 1")
    for heading in ("network", "runtime", "precision"):
        table.add_column(heading, no_wrap=True)
    for heading in ("ms", "x fp32", "+-", "difference", ""):
        table.add_column(heading, justify="right")
    for each in found:
        times = statistics.median(each.times_fp32) if each.times_fp32 else None
        table.add_row(
            each.network,
            each.runtime,
            each.precision,
            f"{statistics.median(each.ms):.3f}",
            "-" if times is None else f"{times:.2f}",
            f"{half_middle_range(each.times_fp32):.2f}" if times is not None else "-",
            "-" if each.difference is None else f"{each.difference:.1g}",
            "slower" if times is not None and times > SLOWER else "",
            end_section=each.precision == RUNTIMES[each.runtime].precisions[-1],
        )
    out.print(table)
    for each in found:
        if 2 * len(each.refused) > len(each.ms):
            out.print(
                f"{each.network}, {each.runtime} {each.precision}: too busy a machine in {len(each.refused)} of "
                f"{len(each.ms)} rounds, e.g. {each.refused[-1]}",
                soft_wrap=True,
                highlight=False,
            )


def half_middle_range(values: Sequence[float]) -> float:
    """Half the distance of the quartiles; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="local", help="as of `hwnas profile`: local, ssh:..., adb:...")
    parser.add_argument("--runtimes", nargs="+", choices=list(RUNTIMES), default=list(RUNTIMES), metavar="RUNTIME")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args(arguments)
    options.plan = Plan(sweeps=5, max_sweeps=9)
    out = Console(width=max(110, Console().width))
    chosen, found, machine = networks(options.batch), list[Found](), "unknown"
    for runtime in options.runtimes:
        try:
            results, identity = measured(runtime, chosen, options, out)
        except (HwnasError, HwprofError) as error:
            out.print(f"{runtime}: fails: {error}", soft_wrap=True, highlight=False)
            continue
        found += results
        machine = ", ".join(identity.values()) or machine
    if not found:
        parser.exit(1, "error: no runtime could be measured\n")
    command = shlex.join(["python", "benchmarks/precision.py", *(sys.argv[1:] if arguments is None else arguments)])
    out.print(f"machine: {machine}\ncommand: {command}", soft_wrap=True, highlight=False)
    show(found, out)
    if options.json is not None:
        created = datetime.now(timezone.utc).isoformat(timespec="seconds")
        head = {"machine": machine, "command": command, "created": created}
        data = {**head, "results": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
