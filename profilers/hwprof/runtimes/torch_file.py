"""A graph as a file that PyTorch is to run: a zip of `graph.json` and `weights.bin`, read without unpickling anything.

    graph.json   {"format", "version", "inputs": [name], "output": name, "shapes": {name: shape},
                  "steps": [{"kind", "output", "inputs": [name], "weights": {name: shape}, "attributes": {...}}]}
    weights.bin  the weights of all steps, in the order of that text: float32, little-endian, row-major

Both are stored, not compressed, so what is read is never larger than the file. Everything is checked before it is used:
a file that is damaged, or that somebody made up, is an error and nothing worse.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hwprof.errors import MeasurementError
from hwprof.runtimes.arrays import Array

FORMAT, VERSION = "hwprof-torch-graph", 1
TEXT, WEIGHTS = "graph.json", "weights.bin"

_LARGEST_TENSOR = 2**30  # elements
_LARGEST_NUMBER = 2**16  # of a stride, a padding, groups, ...


@dataclass(frozen=True)
class Form:
    """What the steps of a kind have: how many inputs (0: any number), weights (name: axes), attributes (name: least).

    A weight called "bias" may be left out. An attribute is a pair (height, width) of whole numbers from `least` on, but
    for "groups", which is one, and "count_include_pad", which is true or false.
    """

    inputs: int = 1
    weights: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)


_POOL = {"kernel": 1, "stride": 1, "padding": 0}
KINDS = {
    "conv": Form(1, {"weight": 4, "bias": 1}, {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}),
    "linear": Form(1, {"weight": 2, "bias": 1}),
    "batch_norm": Form(1, {"scale": 1, "shift": 1}),
    "avg_pool": Form(1, {}, {**_POOL, "count_include_pad": 0}),
    "max_pool": Form(1, {}, _POOL),
    "add": Form(2),
    "mul": Form(2),
    "concat": Form(0),
    **dict.fromkeys(("relu", "relu6", "hardswish", "hardsigmoid", "sigmoid", "silu"), Form()),
    **dict.fromkeys(("global_avg_pool", "flatten"), Form()),
}


@dataclass(frozen=True)
class Step:
    """One operator: its weights are float32, its attributes those of its kind's form."""

    kind: str
    output: str
    inputs: tuple[str, ...]
    weights: Mapping[str, Array] = field(compare=False)
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class GraphFile:
    """Steps in the order in which they can be computed; `shapes` are those of every tensor, with the batch."""

    inputs: tuple[str, ...]
    output: str
    shapes: Mapping[str, tuple[int, ...]]
    steps: tuple[Step, ...]


def write_graph_file(graph: GraphFile, path: Path) -> None:
    """Write the file; the same graph gives the same bytes."""
    text = {
        "format": FORMAT,
        "version": VERSION,
        "inputs": graph.inputs,
        "output": graph.output,
        "shapes": dict(graph.shapes),
        "steps": [
            {
                "kind": step.kind,
                "output": step.output,
                "inputs": step.inputs,
                "weights": {name: array.shape for name, array in step.weights.items()},
                "attributes": dict(step.attributes),
            }
            for step in graph.steps
        ],
    }
    arrays = [array for step in graph.steps for array in step.weights.values()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (
            (TEXT, json.dumps(text, separators=(",", ":")).encode()),
            (WEIGHTS, b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in arrays)),
        ):
            archive.writestr(zipfile.ZipInfo(name), content)  # a ZipInfo of its own has no time of writing


def read_graph_file(path: Path) -> GraphFile:
    """Read and check a file. Raises MeasurementError, saying what is wrong with it."""
    try:
        return _checked(*_contents(path))
    except MeasurementError as error:
        raise MeasurementError(f"torch cannot load {path.name}: {error}") from error
    except Exception as error:  # a damaged zip or text fails in a dozen ways
        raise MeasurementError(f"torch cannot load {path.name}, it is damaged: {error!r}") from error


def _contents(path: Path) -> tuple[Any, bytes]:
    """The parsed text and the bytes of the weights."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        _require([entry.filename for entry in entries] == [TEXT, WEIGHTS], f"it does not hold {TEXT} and {WEIGHTS}")
        for entry in entries:
            stored = entry.compress_type == zipfile.ZIP_STORED and entry.compress_size == entry.file_size
            _require(stored and entry.file_size <= size, f"its {entry.filename} is not stored as it is")
        return json.loads(archive.read(TEXT)), archive.read(WEIGHTS)  # both checksums are compared


def _checked(text: Any, weights: bytes) -> GraphFile:
    _require(isinstance(text, dict) and text.get("format") == FORMAT, "it is no graph for torch")
    _require(text.get("version") == VERSION, f"its version is {text.get('version')!r}, this hwprof reads {VERSION}")
    shapes = {str(name): _shape(name, shape) for name, shape in text["shapes"].items()}
    inputs, known = _names(text["inputs"], "the graph's inputs"), set(text["inputs"])
    _require(len(known) == len(inputs) > 0 and known <= set(shapes), f"its inputs are {inputs}")
    steps, place = [], 0
    for values in text["steps"]:
        step, place = _step(values, weights, place)
        _require(set(step.inputs) <= known, f"{step.output} reads {step.inputs}, not all of them computed before")
        _require(step.output in shapes and step.output not in known, f"{step.output} has no shape, or is there twice")
        known.add(step.output)
        steps.append(step)
    _require(place == len(weights), f"it has {len(weights)} bytes of weights, its steps need {place}")
    _require(text["output"] in known and known == set(shapes), f"its output is {text['output']!r}")
    return GraphFile(inputs, text["output"], shapes, tuple(steps))


def _step(values: Any, weights: bytes, place: int) -> tuple[Step, int]:
    """A step, and where the weights of the next one begin."""
    kind, output = values["kind"], values["output"]
    _require(isinstance(output, str), f"a step is called {output!r}")
    _require(isinstance(kind, str) and kind in KINDS, f"{output} is of the unknown kind {kind!r}")
    form, inputs = KINDS[kind], _names(values["inputs"], output)
    _require(len(inputs) == (form.inputs or max(1, len(inputs))), f"{output}: {kind} of {len(inputs)} inputs")
    given = values["weights"]
    _require({*form.weights} - {"bias"} <= {*given} <= {*form.weights}, f"{output}: {kind} has weights {list(given)}")
    arrays = {}
    for name, extents in given.items():
        shape = _shape(f"{output}.{name}", extents)
        _require(len(shape) == form.weights[name], f"{output}: {name} has the shape {shape}")
        count = math.prod(shape)
        _require(place + 4 * count <= len(weights), f"the weights end before those of {output}")
        arrays[name] = np.frombuffer(weights, "<f4", count, place).reshape(shape)
        place += 4 * count
    attributes = values["attributes"]
    _require({*attributes} == {*form.attributes}, f"{output}: {kind} has attributes {list(attributes)}")
    checked = {name: _attribute(output, name, attributes[name], least) for name, least in form.attributes.items()}
    return Step(kind, output, inputs, arrays, checked), place


def _attribute(output: str, name: str, value: Any, least: int) -> Any:
    if name == "count_include_pad":
        _require(isinstance(value, bool), f"{output}: {name} is {value!r}")
        return value
    numbers = [value] if name == "groups" else value
    good = isinstance(numbers, list) and len(numbers) == (1 if name == "groups" else 2)
    good = good and all(type(number) is int and least <= number <= _LARGEST_NUMBER for number in numbers)
    _require(good, f"{output}: {name} is {value!r}")
    return value if name == "groups" else tuple(numbers)


def _names(values: Any, owner: str) -> tuple[str, ...]:
    _require(isinstance(values, list) and all(isinstance(value, str) for value in values), f"{owner} are {values!r}")
    return tuple(values)


def _shape(name: str, extents: Sequence[Any]) -> tuple[int, ...]:
    good = isinstance(extents, list) and 1 <= len(extents) <= 8
    good = good and all(type(extent) is int and 1 <= extent <= _LARGEST_TENSOR for extent in extents)
    _require(good and math.prod(extents) <= _LARGEST_TENSOR, f"{name} has the shape {str(extents)[:100]}")
    return tuple(extents)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise MeasurementError(problem)
