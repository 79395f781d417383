"""The shipped conformance suite, on every runtime and precision that works where the tests run."""

from __future__ import annotations

import pytest

from hwnas.testing.runtimes import check_runtime, why_not
from hwprof.runtimes import RUNTIMES
from hwprof.target import Target

TARGETS = [
    Target(runtime=name, precision=precision) for name, kind in RUNTIMES.items() for precision in kind.precisions
]


@pytest.mark.parametrize("target", TARGETS, ids=[f"{target.runtime}-{target.precision}" for target in TARGETS])
def test_runtimes_keep_their_contract(target: Target) -> None:
    if (reason := why_not(target)) is not None:
        pytest.skip(reason)
    check_runtime(target)
