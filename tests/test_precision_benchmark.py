"""The comparison of precisions runs on whatever is installed, and says what is missing."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.runtimes import Kind
from hwprof.target import Plan

SOURCE = Path(__file__).resolve().parents[1] / "benchmarks" / "precision.py"


@pytest.fixture
def benchmark(monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("precision", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "precision", module)
    spec.loader.exec_module(module)
    space = NasBench201Space(channels=4, cells=1, resolution=8, num_classes=5)
    arch = space.check((3, 1, 2, 4, 0, 3))
    monkeypatch.setattr(module, "networks", lambda batch: [module.Network("tiny", *module.settled(space, arch, batch))])
    loose = {"max_standard_error": 9.0, "max_spread": 9.0, "max_drift": 9.0}
    monkeypatch.setattr(module, "Plan", lambda **sizes: Plan(3, 3, max_runs=3, visit_ms=0.5, **loose))
    monkeypatch.setitem(module.RUNTIMES, "absent", Kind("nowhere:Absent", "onnx", ("fp32",), False, "absent"))
    return module


def test_a_table_of_what_is_here(benchmark, tmp_path, capsys):
    arguments = ["--runtimes", "onnxruntime", "absent", "--rounds", "2", "--json", str(tmp_path / "p")]
    benchmark.main(arguments)
    printed = capsys.readouterr().out
    assert "absent fp32: not here: " in printed
    assert "machine: " in printed
    results = json.loads((tmp_path / "p").read_text())["results"]
    assert [(each["network"], each["runtime"], each["precision"]) for each in results] == [
        ("tiny", "onnxruntime", precision) for precision in ("fp32", "fp16", "int8")
    ]
    for each, limit in zip(results, (1e-5, 1e-2, 0.2), strict=True):
        assert len(each["ms"]) == len(each["times_fp32"]) == 2
        assert min(each["ms"]) > 0
        assert 0 < each["difference"] < limit
        assert each["precision"] in printed
    assert results[0]["times_fp32"] == [1, 1]
    assert results[1]["times_fp32"][1] == results[1]["ms"][1] / results[0]["ms"][1]


def test_nothing_to_measure(benchmark, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--runtimes", "absent", "--rounds", "1"])
    assert ended.value.code == 1
    assert "no runtime could be measured" in capsys.readouterr().err


def test_what_is_slower_or_refused_is_said(benchmark, capsys):
    busy = "the machine is busy"
    found = [
        benchmark.Found("net", "onnxruntime", "fp32", [2.0, 2.0], [1.0, 1.0], 1e-6),
        benchmark.Found("net", "onnxruntime", "fp16", [4.0, 3.0, 3.2], [2.0, 1.5, 1.6], 0.01, [busy, busy]),
        benchmark.Found("net", "onnxruntime", "int8", [1.0, 1.0, 1.0], [0.5, 0.5, 0.5], 0.1, [busy]),
    ]
    benchmark.show(found, benchmark.Console(width=110))
    printed = capsys.readouterr().out
    assert [
        line.split("|")[0].count("slower") for line in printed.splitlines() if "net" in line and "\u2502" in line
    ] == [
        0,
        1,
        0,
    ]
    assert "1.60" in printed
    assert "net, onnxruntime fp16: too busy a machine in 2 of 3 rounds, e.g. the machine is busy" in printed
    assert printed.count("too busy") == 1


def test_half_of_the_middle_half(benchmark):
    assert benchmark.half_middle_range([1.0]) == 0
    assert benchmark.half_middle_range([1, 2, 3, 4, 5]) == 1
