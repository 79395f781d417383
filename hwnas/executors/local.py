"""In this process: one training after another, the same in every run."""

from __future__ import annotations

from hwnas.run import Run
from hwnas.searching import search_networks


def search_here(run: Run) -> None:
    """Train the networks of a run one after another."""
    search_networks(run)
