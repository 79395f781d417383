"""The benchmark of searches on the cells of NAS-Bench-201: its judge by hand, and that it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NB201 = Path(__file__).parents[2] / "shared" / "data" / "nb201"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "search_quality", raising=False)


def test_the_judge_by_hand() -> None:
    from search_quality import Cells, Judge

    archs = np.zeros((4, 6), dtype=np.int64)
    cells = Cells(
        archs, np.array([90.0, 80.0, 60.0, 10.0]), np.zeros((4, 1)), np.array([3.0, 2.0, 1.0, 5.0]), np.zeros((4, 1))
    )
    judge = Judge(cells)
    assert judge(np.arange(4))[:3] == pytest.approx((1, 1, 0))
    # accuracies from 10 to 90%, latencies from 1 to 5 ms: columns of 1, 1 and 2 ms
    whole = (50 / 80 * 1 + 70 / 80 * 1 + 80 / 80 * 2) / 4
    assert judge(np.array([2, 3]))[0] == pytest.approx(50 / 80 / whole)
    # between the ends of the front (60 to 90%, 1 to 3 ms) only the middle cell encloses anything
    assert judge(np.array([0, 2]))[1] == pytest.approx(0)
    assert judge(np.array([1]))[1] == pytest.approx(1)
    # the fastest is (10 / 30, 2 / 2 - 1 / 2) behind the middle one in scaled accuracy: of three, one third each
    assert judge(np.array([1]))[2] == pytest.approx((10 / 30 + 0 + 0.5) / 3)
    assert judge(np.array([3]))[3] > judge(np.array([2]))[3] > judge(np.array([0, 1, 2]))[3] == pytest.approx(0)


@pytest.mark.shared_data
def test_it_runs_and_ours_needs_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    from search_quality import main

    tables = [
        f"--{name}={NB201 / file}"
        for name, file in (
            ("truth", "nb201_cifar10.csv.gz"),
            ("runs", "nb201_cifar10_runs.csv.gz"),
            ("latency", "nb201_latency_ms.csv.gz"),
        )
    ]
    few = ["--seeds=2", "--evaluations=14", "--workers=1", "--devices=gold_6240"]
    main([*tables, *few, "--methods=random|NSGA-II 20|surrogate"])
    lines = capsys.readouterr().out.splitlines()
    shares = {line[:26].strip(): float(line[57:].split()[2]) for line in lines[5:8]}
    assert shares["surrogate"] > 0.97 > max(shares["random"], shares["NSGA-II 20"])
    with pytest.raises(SystemExit):
        main([*tables, "--methods=best"])
