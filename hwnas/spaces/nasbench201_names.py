"""How the authors of NAS-Bench-201 number and write their cells: for reading published tables.

Both speak of all 15,625 cells as written, before `NasBench201Space.canonical` takes useless edges away.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache

from hwnas.errors import SpaceError
from hwnas.space import Arch
from hwnas.spaces.nasbench201 import EDGES, OPS

CELLS = len(OPS) ** len(EDGES)


def official_index(arch: Sequence[int]) -> int:
    """The index in the benchmark's files, 0 to 15,624. Raises SpaceError on anything but six option indices."""
    number = 0
    for op in _checked(arch):
        number = number * len(OPS) + op
    return _shuffled().index(number)


def arch_of_index(index: int) -> Arch:
    """The inverse of `official_index`. Raises SpaceError on an index that does not exist."""
    if not 0 <= index < CELLS:
        raise SpaceError(f"NAS-Bench-201 has cells 0 to {CELLS - 1}, got {index}")
    number = _shuffled()[index]
    return tuple(number // len(OPS) ** power % len(OPS) for power in reversed(range(len(EDGES))))


def cell_string(arch: Sequence[int]) -> str:
    """The authors' text of a cell, e.g. '|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|'."""
    edges = dict(zip(EDGES, _checked(arch), strict=True))
    nodes = ("".join(f"|{OPS[edges[source, target]]}~{source}" for source in range(target)) for target in (1, 2, 3))
    return "+".join(f"{node}|" for node in nodes)


def parse_cell_string(text: str) -> Arch:
    """The inverse of `cell_string`. Raises SpaceError on anything else."""
    ops = re.findall(r"\|([^|~]+)~", text)
    if len(ops) == len(EDGES) and set(ops) <= set(OPS):
        arch = tuple(OPS.index(op) for op in ops)
        if cell_string(arch) == text:
            return arch
    raise SpaceError(
        f"a cell of NAS-Bench-201 is written like {cell_string((3, 0, 1, 0, 0, 4))} with {OPS}, got {text!r}"
    )


def _checked(arch: Sequence[int]) -> Sequence[int]:
    if len(arch) != len(EDGES) or any(op not in range(len(OPS)) for op in arch):
        raise SpaceError(f"a cell has {len(EDGES)} option indices, each 0 to {len(OPS) - 1}, got {tuple(arch)}")
    return arch


@cache
def _shuffled() -> tuple[int, ...]:
    # the authors enumerate the cells, last edge fastest, and shuffle the list once by this seed
    order = list(range(CELLS))
    random.Random(88).shuffle(order)
    return tuple(order)
