"""A network in one format, as a folder that a stranger can use: the file, its card, and an example that runs it.

    FORMAT/NAME/NAME.SUFFIX        the file, and what belongs to it
    FORMAT/NAME/NAME.SUFFIX.json   the card: classes, preprocessing, accuracy of the file, its size and SHA-256
    FORMAT/NAME/run.py             the example: python run.py NAME.SUFFIX images.npy

The folder appears when all of it was written and checked; until then, whatever happens, the older one stays.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hwnas.errors import MissingPackageError
from hwnas.export.card import metadata_of, write_card
from hwnas.export.exporter import Exporter, ExportSpec, require_precision
from hwnas.export.folder import replaced_folder
from hwnas.export.verify import Images, Verification, batches_of, verify
from hwprof.errors import DeviceError, RuntimeMissingError
from hwprof.files import companions

EXAMPLE = "run.py"
# What of the card is in the file, too, where its format has a place: what runs it, and what it is.
INSIDE = ("version", "name", "space", "arch", "data", "classes", "input", "format", "precision")
# Images as the module takes them, and all their labels.
Split = tuple[Images, Tensor]
# A written file -> split of the data -> how the file did on it.
Check = Callable[[Path], Mapping[str, Verification]]
_BATCH = 256


def file_name(exporter: Exporter, name: str, precision: str) -> str:
    """The name of a network's file."""
    return name + ("" if precision == exporter.precisions[0] else f".{precision}") + exporter.suffixes[0]


def ship(
    exporter: Exporter,
    module: nn.Module,
    spec: ExportSpec,
    folder: Path,
    name: str,
    card: Mapping[str, Any],
    check: Check,
) -> dict[str, Any]:
    """Write, check and show the module as `folder`/FORMAT/NAME; what the card says.

    `card` is what is known before: at least the `classes`, and of the `input` what `normalise` ("inside", "outside")
    it needs. Where the check cannot be made here, the card says why. Raises what the exporter and the check raise; the
    older folder then stays.
    """
    require_precision(exporter, spec.precision)
    channels, height, width = spec.input_shape
    file = file_name(exporter, name, spec.precision)
    facts = {
        **card,
        "format": exporter.name,
        "precision": spec.precision,
        "largest_batch": exporter.largest_batch,
        "input": {
            **card["input"],
            "shape": ["batch", *((height, width, channels) if exporter.layout == "nhwc" else spec.input_shape)],
            "layout": exporter.layout,
            "type": "float32",
        },
    }
    stamped = replace(spec, metadata=metadata_of({key: facts[key] for key in INSIDE if key in facts}))
    final = folder / exporter.name / file.removesuffix(exporter.suffixes[0])
    with replaced_folder(final) as new:
        path = new / file
        exporter.write(module, stamped, path)
        checked, reason = _checked(check, path)
        facts |= {
            "accuracy_percent": {split: found.accuracy for split, found in checked.items()},
            "module_accuracy_percent": {split: found.module_accuracy for split, found in checked.items()},
            "checked_images": {split: found.images for split, found in checked.items()},
            "max_logit_difference": max((found.max_difference for found in checked.values()), default=None),
            "not_checked": reason,
        }
        stem = path.name.removesuffix(exporter.suffixes[0])
        write_card(facts, path, [path.with_name(stem + suffix) for suffix in exporter.suffixes[1:]])
        with as_file(files("hwnas.export") / "examples" / f"run_{exporter.name}.py") as example:
            shutil.copyfile(example, new / EXAMPLE)
    written = final / file
    size = sum(each.stat().st_size for each in (written, *companions(written)))
    return {**facts, "path": str(written), "size_bytes": size}


def check_here(
    exporter: Exporter, module: nn.Module, precision: str, splits: Mapping[str, Split], path: Path
) -> dict[str, Verification]:
    """How a file does in its format's runtime on this machine, on each split. Raises what `Exporter.load` raises."""
    infer = exporter.load(path, precision)
    size = min(_BATCH, exporter.largest_batch or _BATCH)
    return {
        split: verify(infer, path.name, precision, module, batches_of(images, labels, size))
        for split, (images, labels) in splits.items()
    }


def _checked(check: Check, path: Path) -> tuple[Mapping[str, Verification], str | None]:
    try:
        return check(path), None
    except (MissingPackageError, RuntimeMissingError, DeviceError) as error:
        return {}, str(error)
