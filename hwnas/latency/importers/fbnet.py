"""`fbnet`: the text tables of FBNet's re-implementations (Wu et al., CVPR 2019, arXiv 1812.03443).

The first line names the operations, each further line gives one time per operation, in microseconds, for one searched
layer. What a layer is does not stand in the file: 22 lines are taken for the layers of the paper's table 1 at 224 x
224; of any other number of layers, rows keep their own names. Neither spread nor count is published.

`ir_k3_e3` is an inverted bottleneck with ReLU, and `skip` a 1x1 convolution where it changes the shape. Our blocks lack
expansion 1, which is still a convolution in FBNet, and the grouped (`_s2`) and squeeze-excite (`_se`) variants.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from hwnas.blocks import Block, ConvBlock, MBConvBlock
from hwnas.latency.importers.entry import Entry, Translation, distinct, parse_entry
from hwprof.errors import TableError

UNIT = "us"

# (width of a stage's blocks, blocks, stride of the first), after a stem of 16 channels at 112 x 112.
_STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))


def _layers() -> Iterator[tuple[int, int, int, int]]:
    size, channels = 112, 16
    for width, blocks, stride in _STAGES:
        for block in range(blocks):
            first = stride if block == 0 else 1
            yield size, channels, width, first
            size, channels = size // first, width


# (input size, in channels, out channels, stride) of the searched layers
LAYERS = tuple(_layers())


def matches(text: str) -> bool:
    """Whether the text looks like such a table: a line of names, a line of as many numbers."""
    lines = [line.split() for line in text[:100_000].splitlines()[:2]]
    return (
        len(lines) == 2 and _are_names(lines[0]) and len(lines[0]) == len(lines[1]) and all(map(_is_number, lines[1]))
    )


def _are_names(words: Sequence[str]) -> bool:
    return bool(words) and all(re.fullmatch(r"[A-Za-z]\w{0,60}", word, flags=re.ASCII) for word in words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def read(text: str, source: str) -> list[Entry]:
    """The entries, named by layer and operation. Raises TableError."""
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    names = lines[0][1] if lines else []
    if not _are_names(names) or len(set(names)) < len(names):
        raise TableError(f"{source}: the first line must name the operations, each once, got {' '.join(names)[:60]!r}")
    entries = []
    for layer, (number, values) in enumerate(lines[1:]):
        if len(values) != len(names):
            raise TableError(
                f"{source}: line {number} has {len(values)} values for {len(names)} operations; is the file complete?"
            )
        entries += [parse_entry(source, f"layer{layer}-{op}", ms) for op, ms in zip(names, values, strict=True)]
    return distinct(source, entries)


def translate(entries: Sequence[Entry]) -> Iterator[Translation]:
    """What the entries are to us."""
    places = [entry.key.removeprefix("layer").split("-", 1) for entry in entries]
    known = len({layer for layer, _ in places}) == len(LAYERS)
    for entry, (layer, op) in zip(entries, places, strict=True):
        block = _block(op, *LAYERS[int(layer)]) if known else None
        yield Translation(f"fbnet:{entry.key}" if block is None else block.key, block, (entry,))


def _block(op: str, size: int, in_channels: int, out_channels: int, stride: int) -> Block | None:
    if op == "skip" and (stride, in_channels) != (1, out_channels):
        return ConvBlock(size, in_channels, out_channels, 1, stride, "relu")
    found = re.fullmatch("ir_k([357])_e([2-9])", op)
    if found is None:
        return None
    kernel, expand = map(int, found.groups())
    return MBConvBlock(size, in_channels, out_channels, kernel, stride, in_channels * expand, "relu", False)
