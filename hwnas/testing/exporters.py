"""Conformance of an export format: everything that shipping a network in it takes for granted.

Call `check_exporter` from a test of a format of your own, once for each of its precisions: it ships small networks of
every space, on scikit-learn's digits, as `hwnas export` does. `why_not` gives the reason to skip it where the format's
packages, or what they need, are not there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hwnas.errors import ExportError, MissingPackageError
from hwnas.export.card import metadata_of
from hwnas.export.exporter import Array, Exporter, ExportSpec, Infer
from hwnas.export.normalise import with_normalisation
from hwnas.export.ship import EXAMPLE, check_here, file_name, ship
from hwnas.space import Arch, SearchSpace
from hwnas.spaces import make_space
from hwnas.testing.networks import randomise, require
from hwnas.testing.runtimes import TOLERANCE
from hwnas.train.data import ImageData, load_data
from hwnas.train.preprocess import normalise, resize
from hwprof.errors import DeviceError

_SIZE = 16
# The smallest of each space that have every operator of it.
SPACES: dict[str, dict[str, Any]] = {
    "mobilenetv3": {
        "resolutions": [_SIZE], "depths": [1, 2], "stem_width": 8, "stage_widths": [8, 16], "stage_strides": [2, 2],
        "se": [False, True], "activations": ["relu", "hardswish"], "head_widths": [16, 16],
    },
    "nasbench201": {"channels": 4, "cells": 1, "resolution": _SIZE},
    "morph": {"resolution": _SIZE, "widths": [8, 16, 24], "kernels": [3], "stages": 1, "max_depth": 2},
}  # fmt: skip
_IMAGES, _BATCHES = 48, (1, 3, 7)


def why_not(exporter: Exporter, precision: str | None = None) -> str | None:
    """Why files of the format cannot be written and run here; None if they can."""
    case = _Case(exporter, precision or exporter.precisions[0], "nasbench201")
    with tempfile.TemporaryDirectory(prefix="hwnas-conformance-") as folder:
        path = Path(folder) / file_name(exporter, "probe", case.precision)
        try:
            exporter.write(case.module, case.spec({}), path)
            exporter.load(path, case.precision)(case.normalised[:1].numpy())
        except (MissingPackageError, DeviceError) as error:
            return str(error)
    return None


def check_exporter(exporter: Exporter, precision: str, spaces: Sequence[str] = tuple(SPACES)) -> None:
    """Raise AssertionError, saying what to change, unless the format keeps the contract of Exporter in the precision.

    Networks of the spaces are written with normalisation outside and inside, and run in the format's own runtime: their
    logits are those of the modules within the precision, and their labels, read by the shipped example with the file
    and raw pixels alone, are those of the file. Then damaged files are tried.
    """
    require(len(exporter.suffixes) > 0, f"{exporter.name} needs the suffix of its file")
    with tempfile.TemporaryDirectory(prefix="hwnas-conformance-") as name:
        for number, space in enumerate(spaces):
            for inside in (False, True):
                case = _Case(exporter, precision, space, inside)
                folder = Path(name) / f"{space}-{inside}"
                path, infer = _check_numbers(case, folder)
                if number == 0:
                    _check_example(case, path, infer)
                    _check_metadata(case, path)
        _check_refusals(case, path)


@dataclass(frozen=True)
class _Case:
    exporter: Exporter
    precision: str
    space_name: str
    inside: bool = False
    data: ImageData = field(default_factory=lambda: load_data("digits"))

    @cached_property
    def network(self) -> nn.Module:
        space, arch = self.space
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = space.build(arch)
            randomise(network)
            return network.eval()

    @cached_property
    def space(self) -> tuple[SearchSpace, Arch]:
        given = {**SPACES[self.space_name], "in_channels": 1, "num_classes": 10}
        space = make_space(self.space_name, given)
        (row,) = space.sample(1, np.random.default_rng(3))
        return space, space.check(tuple(int(option) for option in row))

    @cached_property
    def module(self) -> nn.Module:
        """What is written."""
        return with_normalisation(self.network, self.data.mean, self.data.std) if self.inside else self.network

    @cached_property
    def pixels(self) -> Tensor:
        return resize(self.data.x_test[:_IMAGES], _SIZE)

    @cached_property
    def normalised(self) -> Tensor:
        return normalise(self.pixels, self.data.mean, self.data.std, _SIZE)

    @property
    def images(self) -> Tensor:
        """As the file takes them."""
        return self.pixels.float() if self.inside else self.normalised

    @cached_property
    def expected(self) -> Array:
        with torch.no_grad():
            logits: Array = self.network(self.normalised).numpy()
        return logits

    @property
    def card(self) -> dict[str, Any]:
        return {
            "name": "net",
            "classes": [f"digit {name}" for name in self.data.class_names],
            "input": {
                "normalise": "inside" if self.inside else "outside",
                "mean": list(self.data.mean),
                "std": list(self.data.std),
            },
        }

    def spec(self, card: dict[str, Any]) -> ExportSpec:
        shape = self.space[0].input_shape(self.space[1])
        return ExportSpec(shape, self.precision, 1, self.images[:32], metadata_of(card))

    def __str__(self) -> str:
        where = "inside" if self.inside else "outside"
        return f"{self.exporter.name} {self.precision} of {self.space_name}, normalisation {where},"


def _check_numbers(case: _Case, folder: Path) -> tuple[Path, Infer]:
    """What was shipped, and what runs it."""
    exporter, module = case.exporter, case.module
    labels = torch.from_numpy(case.expected.argmax(axis=1))
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.train()  # in which the module must be found again

    def check(path: Path) -> Any:
        require(module.training, f"{case} leaves the module in another mode; put it back")
        return check_here(exporter, module, case.precision, {"test": (case.images.__getitem__, labels)}, path)

    shown = ship(exporter, module, case.spec({}), folder, "net", case.card, check)
    after = module.state_dict()
    require(all(torch.equal(before[key], after[key]) for key in before), f"{case} changes the module's weights")
    path = Path(shown["path"])
    stem = path.name.removesuffix(exporter.suffixes[0])
    wanted = {*(stem + suffix for suffix in exporter.suffixes), f"{path.name}.json", EXAMPLE}
    found = {each.name for each in path.parent.iterdir()}
    require(found == wanted, f"{case} leaves {sorted(found)}, its suffixes say {sorted(wanted)}")
    infer = exporter.load(path, case.precision)
    _check_batches(case, infer)
    require(
        shown["accuracy_percent"]["test"] >= 100 * (1 - 3 * TOLERANCE[case.precision]),
        f"{case} agrees with its network on {shown['accuracy_percent']['test']:.0f}% of labels only",
    )
    return path, infer


def _check_batches(case: _Case, infer: Infer) -> None:
    largest = case.exporter.largest_batch
    for batch in sorted({min(size, largest or size) for size in (*_BATCHES, largest or 1)}):
        found, expected = infer(case.images[:batch].numpy()), case.expected[:batch]
        require(found.shape == expected.shape, f"{case} gives {found.shape} for {batch} images, not {expected.shape}")
        difference = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
        require(
            difference <= TOLERANCE[case.precision],
            f"{case} differs from its module by {difference:.2g} on {batch} images, more than "
            f"{TOLERANCE[case.precision]:g}: the writer or the runtime computes something else",
        )
    if largest is not None:
        try:
            infer(np.repeat(case.images[:1].numpy(), largest + 1, axis=0))
        except ExportError:
            return
        raise AssertionError(f"{case} takes {largest + 1} images, its largest_batch is {largest}")


def _check_example(case: _Case, path: Path, infer: Infer) -> None:
    """The example, with nothing but the folder, gives the labels that the file gives."""
    images = path.parent.parent / "images.npy"
    np.save(images, case.pixels[:8].numpy())
    done = subprocess.run(
        [sys.executable, EXAMPLE, path.name, str(images.resolve())],
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    require(done.returncode == 0, f"the example of {case} fails: {done.stderr}")
    logits = np.concatenate([infer(case.images[row : row + 1].numpy()) for row in range(8)])
    wanted = [case.card["classes"][label] for label in logits.argmax(axis=1)]
    said = done.stdout.splitlines()
    require(said == wanted, f"the example of {case} says {said}, the file {wanted}: normalisation or labels differ")


def _check_metadata(case: _Case, path: Path) -> None:
    card = json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    require(card["classes"] == case.card["classes"], f"the card of {case} has other classes: {card['classes']}")
    found = case.exporter.read_metadata(path)
    if found:
        known = {key: value for key, value in metadata_of(case.card).items() if key != "hwnas.input"}
        missing = sorted(key for key, value in known.items() if found.get(key) != value)
        require(not missing, f"{case} keeps no {missing} in its metadata, which is {found}")
        require(json.loads(found["hwnas.input"])["mean"] == case.card["input"]["mean"], f"{case} keeps another mean")


def _check_refusals(case: _Case, path: Path) -> None:
    """A precision that is not there, and a damaged file, are errors that say so."""
    exporter = case.exporter
    wrong = ExportSpec(case.spec({}).input_shape, "fp7")
    _require_export_error(f"writing {exporter.name} in fp7", partial(exporter.write, case.module, wrong, path))
    whole = path.read_bytes()
    for data in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(data)
        _require_export_error(
            f"running {exporter.name} files of {len(data)} bytes that are no model",
            lambda: exporter.load(path, case.precision)(case.images[:1].numpy()),
        )


def _require_export_error(what: str, act: Any) -> None:
    try:
        act()
    except ExportError:
        return
    except Exception as error:
        raise AssertionError(f"{what} must be an ExportError, got {type(error).__name__}: {error}") from error
    raise AssertionError(f"{what} must be an ExportError")
