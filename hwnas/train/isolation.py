"""Leave torch's random state, its number of threads and its choice of kernels as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Restore torch's generators of the CPU and of `device` afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def seed_modules(seed: int, device: torch.device) -> None:
    """Seed what dropout and its like draw from, and no other device's generator."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


@contextmanager
def repeatable_kernels(device: torch.device) -> Iterator[None]:
    """On a GPU: convolutions by algorithms that give the same bits in every run; cuDNN's fastest may not."""
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


@contextmanager
def at_most_threads(limit: int | None) -> Iterator[None]:
    """Bound torch's CPU threads meanwhile; None leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if limit is None else max(1, min(before, limit)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
