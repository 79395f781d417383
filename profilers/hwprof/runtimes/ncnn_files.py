"""ncnn's two files, read without ncnn: whether they are whole, which inputs they take, whether weights are int8.

ncnn reads what it is given: other numbers than were written give other times, or end the process. So whoever writes a
model here ends its text with a line that ncnn does not read, the sizes and checksums of both files. Files that others
wrote have no such line and are only looked at roughly.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

from hwprof.errors import MeasurementError

MAGIC = "7767517"
_SEAL = "# sealed:"
_QUANTISED = ("Convolution", "ConvolutionDepthWise", "InnerProduct")


def weights_path(path: Path) -> Path:
    """The second file: x.ncnn.bin beside x.ncnn.param."""
    return path.with_suffix(".bin")


def sealed(text: str, weights: bytes) -> str:
    """The text of a .param file with its last line: checksum of the text, size and checksum of the weights."""
    return text + _seal(text, weights)


def read_text(path: Path) -> str:
    """The text of a .param file. Raises MeasurementError if one of the two files is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8")
        weights = weights_path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise MeasurementError(
            f"a model of ncnn is two files, {path.name} and {weights_path(path).name}: {error}"
        ) from error
    body, seal, rest = text.partition(_SEAL)
    if seal and seal + rest != _seal(body, weights):
        raise MeasurementError(
            f"{path.name} or {weights_path(path).name} ({len(weights)} bytes) is damaged or edited: write them again"
        )
    lines = body.split("\n")
    counts = lines[1].split() if len(lines) > 1 else []
    layers = _layers(body)
    if lines[0].strip() != MAGIC or len(counts) != 2 or counts[0] != str(len(layers)) or not _connected(layers):
        raise MeasurementError(f"{path.name} is no .param file of ncnn, or not all of it")
    return body


def layer_kinds(text: str) -> set[str]:
    """The kinds of layers that ncnn must know."""
    return {words[0] for words in _layers(text)}


def input_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Name of each input's blob -> (channels, height, width) or (features,), in order.

    Raises MeasurementError for an input without a shape.
    """
    shapes = {}
    for kind, name, _, _, *rest in _layers(text):
        if kind == "Input":
            extents = dict(word.split("=", 1) for word in rest if re.fullmatch("[012]=[1-9][0-9]{0,8}", word))
            if not extents or len(extents) != max(map(int, extents)) + 1:
                raise MeasurementError(
                    f"the input {name} has no shape: write 0=WIDTH 1=HEIGHT 2=CHANNELS behind it in the .param file"
                )
            shapes[rest[0]] = tuple(int(extents[key]) for key in sorted(extents, reverse=True))
    return shapes


def has_int8_weights(text: str) -> bool:
    """Whether a layer has scales of int8 (parameter 8): ncnn runs such weights only in int8."""
    return any(
        words[0] in _QUANTISED and any(re.fullmatch(r"8=[1-9]\d*", word) for word in words[4:])
        for words in _layers(text)
    )


def _layers(text: str) -> list[list[str]]:
    """The words of each layer's line: kind, name, numbers of inputs and outputs, their names, parameters."""
    words = [line.split() for line in text.split("\n")[2:]]
    return [line for line in words if len(line) >= 4]


def _connected(layers: list[list[str]]) -> bool:
    """Whether every layer reads only what a layer before it wrote."""
    made: set[str] = set()
    for _, _, inputs, outputs, *rest in layers:
        if not all(re.fullmatch("[0-9]{1,6}", number) for number in (inputs, outputs)):
            return False
        split, end = int(inputs), int(inputs) + int(outputs)
        if len(rest) < end or not made.issuperset(rest[:split]):
            return False
        made.update(rest[split:end])
    return True


def _seal(text: str, weights: bytes) -> str:
    return f"{_SEAL} {zlib.crc32(text.encode()):08x} {len(weights)} {zlib.crc32(weights):08x}\n"
