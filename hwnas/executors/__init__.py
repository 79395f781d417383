"""Where networks are trained, by name: one file each, listed here.

Every executor lets one or more processes run the same loop (`hwnas.searching`) on the same run folder and storage; what
they share is there, so an executor needs to know nothing of networks.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from hwnas.run import Run

EXECUTORS = {
    "local": "hwnas.executors.local:search_here",
    "processes": "hwnas.executors.local_processes:search_in_processes",
    "ray": "hwnas.executors.ray_cluster:search_on_ray",
}


def search(run: Run) -> None:
    """Train the networks of a run as its recipe's `search.executor` says. Raises what `search_networks` raises."""
    module, function = EXECUTORS[run.recipe.search.executor].split(":")
    cast("Callable[[Run], None]", getattr(importlib.import_module(module), function))(run)
