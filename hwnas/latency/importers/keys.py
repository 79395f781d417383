"""The keys of MIT's tables (Once-for-All, ProxylessNAS), and which of our blocks each is.

`expanded_conv-input:80x80x24-output:40x40x32-expand:72-kernel:3-stride:2-idskip:0-se:0-hs:0` is an inverted bottleneck:
sizes are height x width x channels. Once-for-All's `expand` counts channels, and a final average pooling, a 1x1
convolution and the classifier are three keys (one block here). ProxylessNAS's `expand` is a ratio, and its keys have
neither squeeze-excite nor activation: all of its activations are ReLU6.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hwnas.blocks import Block, ConvBlock, HeadBlock, MBConvBlock, conv_output_size
from hwnas.latency.importers.entry import Entry, Translation

_SHAPE = "[0-9]{1,6}(?:x[0-9]{1,6})*"
_KEY = re.compile(f"([A-Za-z][A-Za-z0-9_]*)-input:({_SHAPE})-output:({_SHAPE})((?:-[a-z]+:[0-9]{{1,6}})*)")


@dataclass(frozen=True)
class Dialect:
    """How a publisher writes: the activation around the bottlenecks, and whether `expand` is a ratio."""

    activation: str
    expand_is_ratio: bool


ONCE_FOR_ALL = Dialect("hardswish", expand_is_ratio=False)
PROXYLESSNAS = Dialect("relu6", expand_is_ratio=True)


@dataclass(frozen=True)
class Layer:
    """A key taken apart; shapes as written, (height, width, channels) or (features,)."""

    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    attributes: dict[str, int]


def parse_key(key: str) -> Layer | None:
    """The layer of a key, or None for a key of another kind."""
    found = _KEY.fullmatch(key)
    if found is None:
        return None
    kind, given, out, rest = found.groups()
    pairs = [part.split(":") for part in rest.split("-")[1:]]
    return Layer(kind, _shape(given), _shape(out), {name: int(value) for name, value in pairs})


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("x"))


def input_resolution(entries: Sequence[Entry]) -> int | None:
    """The input image's size that a table's first convolution is for; None where it has none, or several."""
    layers = [parse_key(entry.key) for entry in entries]
    sizes = {layer.input[0] for layer in layers if layer is not None and layer.kind == "Conv"}
    return sizes.pop() if len(sizes) == 1 else None


def dialect_of(entries: Sequence[Entry]) -> Dialect:
    """Once-for-All's where bottlenecks tell their activation, otherwise ProxylessNAS's."""
    return ONCE_FOR_ALL if any("-hs:" in entry.key for entry in entries) else PROXYLESSNAS


def translate(entries: Sequence[Entry], dialect: Dialect) -> Iterator[Translation]:
    """What each entry is; every entry is in at least one translation. Parts of a head are matched by resolution."""
    layers = {entry: parse_key(entry.key) for entry in entries}
    used: set[Entry] = set()
    for entries_of_head, block in _heads(layers, dialect):
        used.update(entries_of_head)
        yield Translation(block.key, block, entries_of_head)
    for entry, layer in layers.items():
        if entry not in used:
            found = None if layer is None else _block(layer, dialect)
            yield Translation(entry.key if found is None else found.key, found, (entry,))


def _block(layer: Layer, dialect: Dialect) -> Block | None:
    if not len(layer.input) == len(layer.output) == 3 or min(*layer.input, *layer.output) < 1:
        return None
    (height, width, channels), (out_height, out_width, out_channels) = layer.input, layer.output
    if height != width or out_height != out_width:
        return None
    if layer.kind == "Conv":
        stride = 1 if out_height == height else 2
        if out_height == conv_output_size(height, stride) and not layer.attributes:
            return ConvBlock(height, channels, out_channels, 3, stride, dialect.activation)
    if layer.kind == "Conv_1" and out_height == height and not layer.attributes:
        return ConvBlock(height, channels, out_channels, 1, 1, dialect.activation)
    if layer.kind == "expanded_conv":
        return _bottleneck(layer, dialect)
    return None


def _bottleneck(layer: Layer, dialect: Dialect) -> Block | None:
    wanted = {"expand", "kernel", "stride", "idskip"} | (set() if dialect.expand_is_ratio else {"se", "hs"})
    given = layer.attributes
    if set(given) != wanted or given["stride"] < 1 or given["kernel"] % 2 == 0 or given["expand"] < 1:
        return None
    (size, _, channels), (out_size, _, out_channels) = layer.input, layer.output
    residual = given["stride"] == 1 and channels == out_channels
    if out_size != conv_output_size(size, given["stride"]) or given["idskip"] != residual:
        return None
    flags = given.get("se", 0), given.get("hs", 0)
    if not set(flags) <= {0, 1}:
        return None
    activation = "relu6" if dialect.expand_is_ratio else ("relu", "hardswish")[flags[1]]
    mid = channels * given["expand"] if dialect.expand_is_ratio else given["expand"]
    return MBConvBlock(size, channels, out_channels, given["kernel"], given["stride"], mid, activation, bool(flags[0]))


def _heads(layers: dict[Entry, Layer | None], dialect: Dialect) -> Iterator[tuple[tuple[Entry, ...], HeadBlock]]:
    """Average pooling, 1x1 convolution and classifier of one resolution that fit each other."""
    takers: dict[tuple[str, int | None, tuple[int, ...]], list[tuple[Entry, Layer]]] = defaultdict(list)
    for entry, layer in layers.items():
        if layer is not None and not layer.attributes:
            takers[layer.kind, entry.resolution, layer.input].append((entry, layer))
    pools = [pair for (kind, _, _), pairs in takers.items() if kind == "AvgPool2D" for pair in pairs]
    for pool, pooled in pools:
        size, channels = pooled.input[0], pooled.input[-1]
        if pooled.input != (size, size, channels) or pooled.output != (1, 1, channels) or 0 in pooled.input:
            continue
        for mix, mixed in takers.get(("Conv_2", pool.resolution, pooled.output), []):
            for logits, classified in takers.get(("Logits", pool.resolution, mixed.output), []):
                if (
                    mixed.output[:-1] == (1, 1)
                    and len(classified.output) == 1
                    and 0 not in (*mixed.output, *classified.output)
                ):
                    hidden, classes = mixed.output[-1], classified.output[0]
                    yield (pool, mix, logits), HeadBlock(size, channels, hidden, classes, dialect.activation)
