"""A made-up run, with everything a report has to show."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hwnas.report.summary import Candidate, NetworkRow, RunSummary, TableFacts

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--enable-logging=stderr",
    "--v=0",
    "--window-size=1200,900",
    "--virtual-time-budget=10000",
    "--dump-dom",
]


def make_row(number: int, **changes: Any) -> NetworkRow:
    predicted = 0.412 * 1.3**number
    measured = predicted * (1 + 0.02 * (-1) ** number)
    row = NetworkRow(
        name=f"net-{number}",
        arch=f"{number}-1-2-0-1",
        choice={
            "stage1.kernel": 3 + 2 * (number % 3),
            "stage1.depth": number,
            "stage2.width": 0.75,
            "activation": "relu",
        },
        accuracy=91.2 + 1.3 * number - 0.09 * number**2,
        valid_accuracy=91.9 + 1.2 * number,
        predicted_ms=predicted,
        predicted_low_ms=0.96 * predicted,
        predicted_high_ms=1.05 * predicted,
        measured_ms=measured,
        measured_low_ms=0.985 * measured,
        measured_high_ms=1.02 * measured,
        refused=None,
        macs=3_450_000 * (number + 1),
        params=61_234 * (number + 1),
        file=f"export/net-{number}.onnx",
        size_bytes=251_000 * (number + 1),
        within_limit=True,
    )
    return replace(row, **changes)


def make_summary(**changes: Any) -> RunSummary:
    networks = [make_row(number) for number in range(5)]
    networks.append(make_row(5, within_limit=False))
    unmeasured = {"measured_ms": None, "measured_low_ms": None, "measured_high_ms": None, "within_limit": None}
    networks.append(make_row(6, refused="spread of ratios 14 % > 10 %, tried 3 times", **unmeasured))
    others = [
        Candidate(
            arch=f"{n}-{n % 3}-0-2-1",
            scores={"naswot": 180 + 7 * (n % 11) + 4.0 * n, "params": 50_000.0 + 9_000 * n},
            predicted_ms=0.4 + 0.06 * n,
            valid_accuracy=None if n % 4 == 0 else 84 + (n % 7) + 0.2 * n,
        )
        for n in range(30)
    ]
    front = [
        Candidate(
            row.arch, {"naswot": 240 + 12.0 * n, "params": float(row.params)}, row.predicted_ms, row.valid_accuracy
        )
        for n, row in enumerate(networks)
    ]
    summary = RunSummary(
        name="quickstart",
        created="2025-01-31T14:05:09+00:00",
        version="0.1.0",
        space={"name": "mobilenetv3", "size": 2_176_782_336, "config": {"width": 0.5, "resolutions": [16, 32]}},
        target={
            "device": "local",
            "cpu": "Example CPU @ 2.5 GHz",
            "runtime": "onnxruntime 1.23",
            "threads": 1,
            "batch": 1,
        },
        limits={"latency_ms": 1.45},
        networks=tuple(networks),
        candidates=(*others, *front),
        without_vote={},
        table=TableFacts("latency_tables/example.csv", 412, 10, 0.019, 0.041, 0.017, 0.0234),
        seconds={"profile": 31.4, "search": 125.2, "export": 48.0},
        recipe='[search]\nsampler = "nsga2"\ntrials = 64\n',
        warnings=("clock not locked: governor is powersave",),
    )
    return replace(summary, **changes)


@pytest.fixture
def summary() -> RunSummary:
    return make_summary()


@pytest.fixture
def row_of() -> Callable[..., NetworkRow]:
    return make_row


@pytest.fixture
def rendered(chromium: str, tmp_path: Path) -> Callable[[Path], tuple[str, str]]:
    """Opens a page: (the document after its scripts ran, what it wrote to the console)."""

    def open_page(path: Path) -> tuple[str, str]:
        command = [chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", path.resolve().as_uri()]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8")
        assert ran.returncode == 0, ran.stderr
        return ran.stdout, "\n".join(line for line in ran.stderr.splitlines() if "CONSOLE" in line)

    return open_page
