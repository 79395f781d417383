"""The shipped conformance suite of export formats, on every format and precision whose packages are here."""

from __future__ import annotations

import pytest

from hwnas.export.exporter import EXPORTERS, make_exporter
from hwnas.testing.exporters import SPACES, check_exporter, why_not

CASES = [(name, precision) for name in EXPORTERS for precision in make_exporter(name).precisions]


@pytest.mark.parametrize(("name", "precision"), CASES, ids=[f"{name}-{precision}" for name, precision in CASES])
def test_formats_keep_their_contract(name: str, precision: str) -> None:
    exporter = make_exporter(name)
    if (reason := why_not(exporter, precision)) is not None:
        pytest.skip(reason)
    check_exporter(exporter, precision, spaces=list(SPACES) if precision == "fp32" else ["mobilenetv3"])
