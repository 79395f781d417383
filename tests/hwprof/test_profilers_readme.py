from __future__ import annotations

import re
from pathlib import Path

import pytest
from agents import SOURCES, runtime_device

from hwprof.client import AgentClient
from hwprof.devices import DEVICES
from hwprof.errors import MeasurementError
from hwprof.runtimes import RUNTIMES
from hwprof.target import Plan, Target

README = (SOURCES / "README.md").read_text(encoding="utf-8")


def test_the_example_of_a_runtime_measures(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "short.py").write_text("def infer(batch):\n    sum(range(2_000 * batch))\n")
    (tmp_path / "long.py").write_text("def infer(batch):\n    sum(range(20_000 * batch))\n")
    (tmp_path / "empty.py").write_text("")
    device = runtime_device(example.replace("PythonRuntime", "Fake"), tmp_path)
    plan = Plan(sweeps=3, max_sweeps=3, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
    with AgentClient(device, Target(runtime="fake", batch=2)) as client:
        group = client.measure({"long": tmp_path / "long.py"}, {"anchor": tmp_path / "short.py"}, plan)
        assert group.results[0].ratio > 2
        assert client.fingerprint["python"]
        with pytest.raises(MeasurementError, match=r"python cannot load empty\.py: KeyError\('infer'\)"):
            client.measure({"empty": tmp_path / "empty.py"}, {}, plan)


def test_the_readme_says_what_there_is_and_the_limits() -> None:
    text = " ".join(README.split())
    assert f"the device `{'`, `'.join(DEVICES)}`" in text
    assert f"the runtime `{'`, `'.join(RUNTIMES)}`" in text
    for name in ("max_drift", "max_spread", "max_standard_error"):
        assert re.search(rf"\| {getattr(Plan(), name):.0%} \| `{name}` \|", README)
