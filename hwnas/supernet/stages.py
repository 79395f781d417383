"""How a supernet is trained, in stages: which options are free, how many subnets a step has, who teaches whom.

**progressive**: Once-for-All's progressive shrinking (Cai et al., ICLR 2020, arXiv 1908.09791, section 3.4 and its
released training script). First the largest network, then kernels, depths and expansions are freed, the largest options
first, with the trained largest network as teacher; resolution is always free. Shares of the budget are those of the
epochs of the paper (180, 120, 25 + 120, 25 + 120), learning rates those of the script beside that of the first stage.

**sandwich**: BigNAS's single stage (Yu et al., ECCV 2020, arXiv 2003.11142, section 3): every step trains the largest
network by the labels, and the smallest and random ones by what the largest just said (in-place distillation), with
clipped gradients.

Slots are told apart by the last part of their names; what is neither kernel, depth nor expansion is freed with the
last of them. A stage whose slots have nothing to choose is left out, its share goes to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwnas.errors import RecipeError
from hwnas.space import IntMatrix, SearchSpace
from hwnas.supernet.extremes import largest_arch, smallest_arch

_ORDER = ("kernel", "depth", "expand")
_ALL = 1_000  # more options than any slot has
_SEEN = 1000  # architectures whose latencies say what the range is
_CANDIDATES = 32  # of which the one nearest to a latency is taken


@dataclass(frozen=True)
class Stage:
    """A part of the training: its `share` of the budget and its learning rate beside the recipe's.

    `free`: by kind of slot ("kernel", "depth", "expand", "other") how many of the largest options may be drawn; of
    kinds that are not named only the largest is. `subnets` random ones train in a step. `taught`: by the network that
    the first stage trained. `sandwich`: beside the random ones the largest and the smallest train, all but the largest
    by what it says. `sort`: channels are sorted by importance before (`sorting.py`). `clip`: largest norm of a
    step's gradient.
    """

    name: str
    share: float
    rate: float = 1.0
    free: Mapping[str, int] | None = None
    subnets: int = 1
    taught: bool = False
    sandwich: bool = False
    sort: bool = False
    warmup: float = 0.0
    clip: float | None = None


def _progressive(options: Mapping[str, int]) -> list[Stage]:
    stages = [Stage("largest", 180, warmup=0.03)]
    if options["kernel"] > 1:
        stages.append(Stage("kernel", 120, 0.37, {"kernel": _ALL}, taught=True, warmup=0.04))
    free = {"kernel": _ALL}
    for kind, subnets in (("depth", 2), ("expand", 4)):
        if options[kind] > 1:
            last = kind == "expand" or options["expand"] == 1
            sort = kind == "expand" or (last and options["other"] > 1)
            if options[kind] > 2:
                stages.append(Stage(f"{kind} 1", 25, 0.031, {**free, kind: 2}, subnets, taught=True, sort=sort))
            free = {**free, kind: _ALL} | ({"other": _ALL} if last else {})
            stages.append(Stage(f"{kind} 2", 120, 0.092, free, subnets, taught=True, sort=sort, warmup=0.04))
    if "other" not in free and options["other"] > 1:
        stages.append(Stage("other", 120, 0.092, {**free, "other": _ALL}, 4, taught=True, sort=True, warmup=0.04))
    return stages


def _sandwich(options: Mapping[str, int]) -> list[Stage]:
    free = dict.fromkeys((*_ORDER, "other"), _ALL)
    return [Stage("sandwich", 1, 1.0, free, subnets=2, sandwich=True, warmup=0.03, clip=1.0)]


METHODS: dict[str, Callable[[Mapping[str, int]], list[Stage]]] = {"progressive": _progressive, "sandwich": _sandwich}


def stages_of(method: str, space: SearchSpace) -> tuple[Stage, ...]:
    """The stages of a method for a space, their shares summing to 1. Raises RecipeError on an unknown method."""
    if method not in METHODS:
        raise RecipeError(f"unknown way to train a supernet {method!r}; known: {', '.join(METHODS)}")
    options = dict.fromkeys((*_ORDER, "other"), 1)
    for number, slot in enumerate(space.slots):
        if number not in resolution_slots(space):
            options[_kind(slot.name)] = max(options[_kind(slot.name)], len(slot.options))
    stages = METHODS[method](options)
    total = sum(stage.share for stage in stages)
    return tuple(replace(stage, share=stage.share / total) for stage in stages)


def everything_free() -> Stage:
    """A stage in which every architecture of a space may be drawn."""
    return Stage("all", 1.0, free=dict.fromkeys((*_ORDER, "other"), _ALL))


def resolution_slots(space: SearchSpace) -> tuple[int, ...]:
    """The slots that decide the size of the input."""
    first = (0,) * len(space.slots)
    return tuple(
        number
        for number, slot in enumerate(space.slots)
        if len({space.input_shape((*first[:number], o, *first[number + 1 :])) for o in range(len(slot.options))}) > 1
    )


def _kind(name: str) -> str:
    last = name.rpartition(".")[2]
    return last if last in _ORDER else "other"


class StageSampler:
    """Draws the architectures of a stage's steps: every free option equally likely.

    With `latency_ms`, (n, slots) -> (n,), latencies are spread evenly instead of falling where most architectures are,
    as AttentiveNAS (arXiv 2011.09011) samples by FLOPs: a latency between the least and the largest seen is drawn, and
    of some architectures the nearest to it taken. `options`: by slot, the indices that are drawn.
    """

    def __init__(
        self, space: SearchSpace, stage: Stage, latency_ms: Callable[[IntMatrix], np.ndarray] | None = None
    ) -> None:
        self._space, self._latency_ms = space, latency_ms
        free, sizes = stage.free or {}, resolution_slots(space)
        largest = largest_arch(space)
        self.options: list[NDArray[np.int64]] = []
        for number, slot in enumerate(space.slots):
            count = _ALL if number in sizes else free.get(_kind(slot.name), 1)
            order = sorted(range(len(slot.options)), key=lambda o: (o == largest[number], _size(slot.options[o], o)))
            self.options.append(np.array(order[::-1][:count], dtype=np.int64))
        if latency_ms is not None:
            ends = np.array([largest, smallest_arch(space)])
            seen = latency_ms(np.concatenate([ends, self.uniform(_SEEN, np.random.default_rng(0))]))
            self._range = float(seen.min()), float(seen.max())

    def uniform(self, n: int, rng: np.random.Generator) -> IntMatrix:
        """(n, slots) canonical architectures of the stage."""
        columns = [options[rng.integers(0, len(options), size=n)] for options in self.options]
        return self._space.canonical(np.stack(columns, axis=1))

    def __call__(self, n: int, rng: np.random.Generator) -> IntMatrix:
        """(n, slots) canonical architectures for one step."""
        if self._latency_ms is None:
            return self.uniform(n, rng)
        candidates = self.uniform(n * _CANDIDATES, rng)
        ms = self._latency_ms(candidates).reshape(n, _CANDIDATES)
        wanted = rng.uniform(*self._range, size=(n, 1))
        nearest: IntMatrix = candidates.reshape(n, _CANDIDATES, -1)[np.arange(n), np.abs(ms - wanted).argmin(axis=1)]
        return nearest


def _size(option: object, number: int) -> float:
    return float(option) if isinstance(option, int | float) else float(number)
