"""`once-for-all`: the YAML (or JSON) tables of Once-for-All (Cai et al., ICLR 2020), one file per input resolution.

Each key has mean, std and count. The names and how a network is summed: the authors' `MBv3LatencyTable`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hwnas.latency.importers.entry import Entry, Translation
from hwnas.latency.importers.keys import ONCE_FOR_ALL, input_resolution
from hwnas.latency.importers.keys import translate as translate_keys
from hwnas.latency.importers.yaml_entries import bottleneck_key, read_entries

UNIT = "ms"


def matches(text: str) -> bool:
    """Whether the text looks like such a table."""
    key = bottleneck_key(text)
    return key is not None and "-hs:" in key


def read(text: str, source: str) -> list[Entry]:
    """The entries. Raises TableError."""
    entries = read_entries(text, source)
    resolution = input_resolution(entries)
    return [replace(entry, resolution=resolution) for entry in entries]


def translate(entries: Sequence[Entry]) -> Iterator[Translation]:
    """What the entries are to us."""
    return translate_keys(entries, ONCE_FOR_ALL)
