"""The classification data sets of torchvision."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.errors import DataError, MissingPackageError
from hwnas.train.sources.arrays import to_images
from hwnas.train.sources.folders import decode
from hwnas.train.sources.splits import Labelled, Splits, renumbered

# what the constructors that take split= call their splits, first choice first
_SPLIT_NAMES = {"train": ("train", "trainval", "train-standard"), "test": ("test", "val")}


def load_torchvision(text: str, root: Path | None, image_size: int | None) -> Splits:
    """torchvision.datasets.NAME, text NAME or NAME:OPTION=VALUE:..., the options passed to its constructor.

    Its files are looked for, and downloaded if missing, in `root` (default: the folder `data`). A class whose
    constructor knows neither train= nor split= is one set of images, to be split.
    """
    import torchvision.datasets

    name, *pairs = text.split(":")
    options = dict(pair.partition("=")[::2] for pair in pairs)
    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind) or name not in torchvision.datasets.__all__:
        raise DataError(
            f"torchvision has no data set {name!r}; it has {', '.join(sorted(torchvision.datasets.__all__))}"
        )
    root = Path("data") if root is None else root
    sets = {part: _open(kind, root, choice) for part, choice in _choices(name, kind, options).items()}
    parts = {part: _labelled(f"torchvision's {name}, {part} images", found, image_size) for part, found in sets.items()}
    classes = getattr(sets["train"], "classes", ())
    names = tuple(name if isinstance(name, str) else str(name[0]) for name in classes)  # Imagenette's are synonyms
    return renumbered(Splits(parts["train"], None, parts.get("test"), names))


def _choices(name: str, kind: Callable[..., Any], options: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Per split, the constructor arguments to try, first choice first."""
    parameters = inspect.signature(kind).parameters
    required = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and key != "root"
    ]
    for key in required:
        if key not in options:
            raise DataError(f"torchvision's {name} needs a {key}; write e.g. torchvision:{name}:{key}=VALUE")
    if "train" in parameters or "split" in options:
        return {part: [{**options, "train": part == "train"}] for part in ("train", "test")}
    if "split" in parameters:
        return {part: [{**options, "split": split} for split in names] for part, names in _SPLIT_NAMES.items()}
    return {"train": [dict(options)]}


def _open(kind: Callable[..., Any], root: Path, choices: Sequence[dict[str, Any]]) -> Any:
    """The data set with the first arguments that its class accepts, downloaded if its files are missing."""
    arguments, *others = choices
    try:
        return kind(root, **arguments)
    except ImportError as error:
        package = error.name or "the package that the message names"
        raise MissingPackageError(
            f"torchvision's {kind.__name__}: {error}; install it with: pip install {package}"
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        return _download(kind, root, arguments, error)
    except (TypeError, ValueError, AssertionError) as error:
        if others and "for argument split" in str(error):
            return _open(kind, root, others)
        raise DataError(
            f"torchvision's {kind.__name__} cannot be opened in {root.absolute()} with {arguments}: {error!r}; "
            "check the options, and delete files that are damaged"
        ) from error


def _download(kind: Callable[..., Any], root: Path, arguments: dict[str, Any], missing: Exception) -> Any:
    parameters = inspect.signature(kind).parameters.values()
    error = missing
    if any(parameter.name == "download" or parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        root.mkdir(parents=True, exist_ok=True)
        try:
            return kind(root, **arguments, download=True)
        except (OSError, RuntimeError, TypeError, ValueError, AssertionError) as failure:
            error = failure
    call = ", ".join(f"{key}={value!r}" for key, value in {**arguments, "download": True}.items())
    raise DataError(
        f"torchvision's {kind.__name__} is not in the folder {root.absolute()} ({missing}) and was not downloaded "
        f'({error}); where there is a network, run python -c "import torchvision.datasets as d; '
        f"d.{kind.__name__}('data', {call})\", and copy the folder data here"
    ) from error


def _labelled(what: str, found: Any, image_size: int | None) -> Labelled:
    """The arrays of a data set that keeps its images in memory; otherwise its images one by one."""
    data, labels = getattr(found, "data", None), getattr(found, "targets", getattr(found, "labels", None))
    if data is not None and labels is not None and np.ndim(labels) == 1 and len(labels) == len(data):
        return Labelled(to_images(what, np.asarray(data)), np.asarray(labels, dtype=np.int64))
    y = np.zeros(len(found), dtype=np.int64)

    def open_image(index: int) -> Any:
        image, y[index] = found[index]
        return image

    try:
        x = decode(open_image, [f"{what}, number {index}" for index in range(len(found))], image_size, None, what)
    except (TypeError, AttributeError) as error:
        raise DataError(
            f"{what}: not one image with one label each ({error}); use a data set for classification"
        ) from error
    return Labelled(x, y)
