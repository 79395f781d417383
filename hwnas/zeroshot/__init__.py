"""Scores of untrained networks: what can be said about an architecture after a few forward passes.

A score is a function `(probe) -> float`, higher is better, of a network and a batch (`probe.py`), that leaves the
module exactly as it was. One forward serves all scores that need no more of it than to see it (`forward.py`); other
passes that several scores need are made once too. What a score cannot say about a network (a dead one, say) is a
reason, and never a NaN or an infinity.
`params` and `macs` are the baselines that every table of scores should carry: many scores do not beat them.
"""

from __future__ import annotations

import difflib
import importlib
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hwnas.errors import DataError, HwnasError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.zeroshot.forward import Observer
    from hwnas.zeroshot.probe import Probe

# name -> where its function is; imported when asked for, so that this package can be imported without torch
SCORES = {
    "naswot": "hwnas.zeroshot.naswot:score",
    "zen": "hwnas.zeroshot.zen:score",
    "snip": "hwnas.zeroshot.snip:score",
    "grad_norm": "hwnas.zeroshot.grad_norm:score",
    "fisher": "hwnas.zeroshot.fisher:score",
    "grasp": "hwnas.zeroshot.grasp:score",
    "synflow": "hwnas.zeroshot.synflow:score",
    "jacob_cov": "hwnas.zeroshot.jacob_cov:score",
    "zico": "hwnas.zeroshot.zico:score",
    "expressivity": "hwnas.zeroshot.az_nas:expressivity",
    "progressivity": "hwnas.zeroshot.az_nas:progressivity",
    "trainability": "hwnas.zeroshot.az_nas:trainability",
    "swap": "hwnas.zeroshot.swap:score",
    "linear_regions": "hwnas.zeroshot.linear_regions:score",
    "ntk": "hwnas.zeroshot.ntk:score",
    "vkdnw": "hwnas.zeroshot.vkdnw:score",
    "near": "hwnas.zeroshot.near:score",
    "meco": "hwnas.zeroshot.meco:score",
    "params": "hwnas.zeroshot.size:params",
    "macs": "hwnas.zeroshot.size:macs",
    "layers": "hwnas.zeroshot.size:layers",
    "shortest_path": "hwnas.zeroshot.shortest_path:score",
}

# What networks are ranked by unless a recipe says otherwise: the mean of the logarithms of their ranks in these.
# Measured in benchmarks/zero_shot.py: none of them alone ranks as well, on cells or on mobile networks.
COMBINED = ("macs", "swap", "meco", "jacob_cov", "shortest_path")


class DegenerateNetworkError(HwnasError, ValueError):
    """A score is not defined for this network on this batch; the message is the reason."""


Score = Callable[["Probe"], float]  # raises DegenerateNetworkError


@dataclass(frozen=True)
class ScoreResult:
    """A finite value, or None (to be ranked last) with the reason; and the seconds that finding out took."""

    value: float | None
    reason: str | None
    seconds: float


def score_names(score: str | Sequence[str]) -> tuple[str, ...]:
    """The scores that a recipe's `score` stands for: "combined", a name, or several names to be combined.

    Raises RecipeError on an unknown or repeated name, or none.
    """
    if score == "combined":
        return COMBINED
    names = (score,) if isinstance(score, str) else tuple(score)
    for name in names:
        if name not in SCORES:
            close = difflib.get_close_matches(name, SCORES, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise RecipeError(f"no zero-shot score is called {name!r}; {hint}the scores: combined, {', '.join(SCORES)}")
    if not names or len(set(names)) < len(names):
        raise RecipeError(f"scores to combine are at least one, each once; got {list(names)}")
    return names


def load_score(name: str) -> Score:
    """The function behind a name of SCORES. Raises RecipeError on an unknown name."""
    (name,) = score_names([name])
    module, function = SCORES[name].split(":")
    score: Score = getattr(importlib.import_module(module), function)
    return score


def observers_of(name: str) -> tuple[type[Observer[Any]], ...]:
    """What the score asks its probe for by `seen`: OBSERVERS of its file, if it has them."""
    found: tuple[type[Observer[Any]], ...]
    found = getattr(importlib.import_module(SCORES[name].partition(":")[0]), "OBSERVERS", ())
    return found


def compute_scores(
    names: Iterable[str], module: nn.Module, images: Tensor, labels: Tensor | None = None, seed: int = 0
) -> dict[str, ScoreResult]:
    """Every named score of one network on one batch. A result does not depend on which others are asked for.

    images: (n, c, h, w) float on the device of the module; labels: (n,) int. Same seed, same result.
    Raises RecipeError on an unknown name, DataError on a batch that is not one of finite images.
    """
    from hwnas.zeroshot.probe import Probe

    scores = {name: load_score(name) for name in names}
    if images.dim() != 4 or not images.is_floating_point() or 0 in images.shape:
        raise DataError(f"scores need (n, c, h, w) float images, got {images.dtype} of shape {tuple(images.shape)}")
    if not bool(images.isfinite().all()):
        raise DataError("the images hold NaN or infinity: check how they are normalised")
    probe = Probe(module, images, labels, seed, [observer for name in scores for observer in observers_of(name)])
    results = {}
    for name, score in scores.items():
        start = time.perf_counter()
        value, reason = None, None
        try:
            value = finite(score(probe), name)
        except DegenerateNetworkError as error:
            reason = str(error)
        results[name] = ScoreResult(value, reason, time.perf_counter() - start)
    return results


def finite(value: float, what: str) -> float:
    """The value. Raises DegenerateNetworkError if it is NaN or infinite."""
    if not math.isfinite(value):
        raise DegenerateNetworkError(f"{what} is {value}: the network is dead, or overflows")
    return value
