"""A target's `optimisation` where it is more than a level: "all+tf32+version-compatible" is a level and two options."""

from __future__ import annotations

from collections.abc import Collection

from hwprof.errors import TargetError
from hwprof.target import Target


def split_optimisation(target: Target, levels: Collection[str], options: Collection[str]) -> tuple[str, frozenset[str]]:
    """The level and the options of the target's optimisation. Raises TargetError on one that the runtime lacks."""
    level, *chosen = target.optimisation.split("+")
    if level not in levels:
        raise TargetError(
            f"{target.runtime} has no optimisation level {level!r}; it has {', '.join(levels)}, with a + and an option "
            f"behind it if wanted: {', '.join(options)}"
        )
    for option in chosen:
        if option not in options:
            raise TargetError(
                f"{target.runtime} has no option {option!r} in {target.optimisation!r}; it has {', '.join(options)}"
            )
    return level, frozenset(chosen)


def require_one_thread(target: Target) -> None:
    """Raise TargetError unless the target has one thread: a GPU has no threads of an inference to choose."""
    if target.threads != 1:
        raise TargetError(f"{target.runtime} runs on a GPU, where threads mean nothing: set threads = 1")
