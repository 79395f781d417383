from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from agents import SOURCES, runtime_device

from hwnas.testing.runtimes import check_runtime
from hwprof.devices import DEVICES, make_device
from hwprof.errors import TargetError
from hwprof.runtimes import RUNTIMES, Kind
from hwprof.target import Plan, Target

README = (SOURCES / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_example_of_a_runtime_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (entry,) = re.findall(r'^    ("reference": Kind\(.*\),)$', README, flags=re.MULTILINE)
    kind = eval(entry.partition(": ")[2].rstrip(","), {"Kind": Kind})
    monkeypatch.setitem(RUNTIMES, "fake", kind)
    device = runtime_device(EXAMPLES[0].replace("class Reference:", "class Fake:"), tmp_path)
    check_runtime(Target(runtime="fake"), device)


@pytest.mark.skipif(shutil.which("taskset") is None, reason="there is no program taskset here")
def test_the_example_of_a_device_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core.py").write_text(EXAMPLES[1])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(DEVICES, "core", "core:CoreDevice")
    check_runtime(Target(device="core:0"))
    with pytest.raises(TargetError, match="a core is a number, as in core:3, got 'x'"):
        make_device("core:x")
    with pytest.raises(TargetError, match="core devices have no option 'speed'"):
        make_device("core:0?speed=9")


def test_the_readme_says_what_there_is_and_the_limits() -> None:
    for name in (*DEVICES, *RUNTIMES):
        assert f"| `{name}` |" in README
    for name in ("max_drift", "max_spread", "max_standard_error"):
        assert re.search(rf"\| {getattr(Plan(), name):.0%} \| `{name}` \|", README)
