"""Which networks a profile measures: to profile, as anchors, to fit and to validate; and how much of each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from hwnas.errors import PredictorError
from hwnas.latency.covering import anchor_archs, covering_archs, distinct_archs, random_archs, spread_archs
from hwnas.latency.estimate import block_features, with_unseen_operators
from hwnas.latency.fusion import contextual
from hwnas.latency.index import BlockIndex
from hwnas.latency.measure import GROUP
from hwnas.space import IntMatrix, SearchSpace
from hwprof.target import Plan

# A small space is covered by a few networks, but a block's time in two or three of them is little evidence.
LEAST_PROFILED = 16
# Anchors, and networks to fit and to validate unless the recipe says: (of a full table, of a quick one). Nine held-out
# networks are what an interval of 90% needs.
ANCHORS, FIT, HELD_OUT, SEARCHED = (5, 3), (48, 16), (24, 9), (72, 27)
# Searched networks are found in so many rounds; all but the last correct the table.
ROUNDS = 3
# Each kind of fusion is one more unknown to be learnt from the networks to fit.
FIT_PER_FUSION = 5
# Networks in which fusions that depend on the architecture are looked for.
LOOKED_AT = 256


@dataclass(frozen=True)
class SweepConfig:
    """How much is measured.

    `networks` is 0 for a covering set, or the number of random networks of a quick table, whose missing rows are then
    estimated. `fit` networks calibrate the blocks, `held_out` networks validate; of `searched` networks, chosen as a
    search would (`rehearsal.py`), two thirds calibrate and one third validates. None: as many as such a table needs. A
    group of at most `group` is measured together, interleaved; a network that was refused is tried again, `attempts`
    times in all.
    """

    networks: int = 0
    fit: int | None = None
    held_out: int | None = None
    searched: int | None = None
    group: int = GROUP
    attempts: int = 5
    seed: int = 0
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        for name, least in (
            ("networks", 0),
            ("fit", 3),
            ("held_out", 2),
            ("searched", 0),
            ("group", 1),
            ("attempts", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise PredictorError(f"profile.{name} must be at least {least}, got {value}")

    @property
    def node_plan(self) -> Plan:
        """Profiled runs are only summed per node, robustly, so fewer sweeps serve and more spread is borne."""
        plan = self.plan
        return replace(
            plan,
            sweeps=5,
            max_sweeps=9,
            max_runs=max(6, plan.min_runs),
            max_standard_error=max(0.05, plan.max_standard_error),
            max_spread=max(0.2, plan.max_spread),
        )


@dataclass(frozen=True)
class Selection:
    """The networks of a profile, (n, slots) each, and the fusions that depend on the architecture.

    Searched ones are added once something is measured that a search can go by; `rounds` says how many each time.
    """

    profiled: IntMatrix
    anchors: IntMatrix
    fit: IntMatrix
    held_out: IntMatrix
    searched: IntMatrix
    fusions: tuple[str, ...]
    rounds: tuple[int, ...]

    @property
    def whole(self) -> IntMatrix:
        """(n, slots) all that are measured as a whole."""
        return np.concatenate([self.anchors, self.fit, self.held_out, self.searched])


def select_networks(space: SearchSpace, index: BlockIndex, config: SweepConfig) -> Selection:
    """Choose the networks by seed alone, so that a restarted profile chooses the same."""
    rng = np.random.default_rng(config.seed)
    quick = config.networks > 0
    anchors = anchor_archs(space, index, rng, ANCHORS[quick])
    fusions = contextual(space, space.sample(LOOKED_AT, rng))
    wanted = FIT[quick] + FIT_PER_FUSION * len(fusions) if config.fit is None else config.fit
    held_out = HELD_OUT[quick] if config.held_out is None else config.held_out
    # Half of them are spread from the smallest to the largest, where searches end; half are drawn uniformly.
    spread = distinct_archs(
        spread_archs(space, 10 * (wanted + held_out), rng), (wanted + held_out) // 2, exclude=anchors
    )
    taken = np.concatenate([anchors, spread])
    uniform = random_archs(space, wanted + held_out - len(spread), rng, exclude=taken)
    whole = rng.permutation(np.concatenate([spread, uniform]))
    fit = max(3, len(whole) * wanted // (wanted + held_out))
    taken = np.concatenate([anchors, whole])
    if quick:
        profiled = random_archs(space, config.networks, rng, exclude=taken)
        # What the random networks lack is estimated, except for operators that none of them holds.
        seen = np.asarray(index.counts(profiled).any(axis=0))
        needed = with_unseen_operators(block_features(index.blocks), seen)
        more = covering_archs(space, index, rng, seen=~needed)
    else:
        profiled = covering_archs(space, index, rng)
        fewer = max(0, LEAST_PROFILED - len(profiled))
        more = random_archs(space, fewer, rng, exclude=np.concatenate([taken, profiled]))
    profiled = np.concatenate([profiled, more])
    if len(whole) < 5 or len(profiled) == 0:
        raise PredictorError(
            f"{space.name} has too few networks ({len(whole)} besides the anchors) to fit and validate, "
            "or none is left to profile; enlarge the space, or profile the covering set (profile.networks = 0)"
        )
    searched = SEARCHED[quick] if config.searched is None else config.searched
    rounds = tuple(searched * (done + 1) // ROUNDS - searched * done // ROUNDS for done in range(ROUNDS))
    return Selection(profiled, anchors, whole[:fit], whole[fit:], whole[:0], fusions, rounds)
