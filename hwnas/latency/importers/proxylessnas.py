"""`proxylessnas`: the YAML tables of ProxylessNAS (Cai et al., ICLR 2019), such as `mobile_trim.yaml`.

Each key has mean, var (in some copies std) and count. The names: the authors' `LatencyEstimator`, to which `Logits` is
all after `Conv_1`: pooling and classifier, without the hidden layer of our head, so it stays under its own name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hwnas.latency.importers.entry import Entry, Translation
from hwnas.latency.importers.keys import PROXYLESSNAS, input_resolution
from hwnas.latency.importers.keys import translate as translate_keys
from hwnas.latency.importers.yaml_entries import bottleneck_key, read_entries

UNIT = "ms"


def matches(text: str) -> bool:
    """Whether the text looks like such a table."""
    key = bottleneck_key(text)
    return key is not None and "-hs:" not in key


def read(text: str, source: str) -> list[Entry]:
    """The entries. Raises TableError."""
    entries = read_entries(text, source)
    resolution = input_resolution(entries)
    return [replace(entry, resolution=resolution) for entry in entries]


def translate(entries: Sequence[Entry]) -> Iterator[Translation]:
    """What the entries are to us."""
    return translate_keys(entries, PROXYLESSNAS)
