from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from agents import SOURCES

from hwprof.archive import OLDEST_PYTHON, agent_archive, archive_bytes
from hwprof.files import companions
from hwprof.target import Target, to_json


def run_agent(archive: Path, python: str = sys.executable) -> dict[str, object]:
    """The answer of the archived agent to a target, with nothing of this checkout on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    job = json.dumps({"job": "open", "target": to_json(Target())})
    done = subprocess.run(
        [python, str(archive)], input=job, env=environment, cwd=archive.parent, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_the_archive_is_an_agent(tmp_path: Path) -> None:
    archive = agent_archive(tmp_path)
    assert run_agent(archive)["event"] == "ready"
    assert list(tmp_path.iterdir()) == [archive]


def test_an_installed_package_makes_the_same_archive(tmp_path: Path) -> None:
    """A wheel's folder beside others, with caches and files of other times: same source, same bytes, same name."""
    shutil.copytree(SOURCES / "hwprof", tmp_path / "site" / "hwprof")
    (tmp_path / "site" / "hwprof" / "__pycache__").mkdir(exist_ok=True)
    (tmp_path / "site" / "hwprof" / "__pycache__" / "junk.pyc").write_bytes(b"junk")
    for path in (tmp_path / "site").rglob("*.py"):
        os.utime(path, (1, 1))
    code = "import sys; from pathlib import Path; from hwprof.archive import *; print(agent_archive(Path(sys.argv[1])))"
    ran = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(ran.stdout.strip()).read_bytes() == archive_bytes()
    assert Path(ran.stdout.strip()).name == agent_archive(tmp_path / "here").name


def test_a_changed_source_is_another_archive(tmp_path: Path) -> None:
    shutil.copytree(SOURCES / "hwprof", tmp_path / "hwprof")
    (tmp_path / "hwprof" / "host.py").write_text("changed")
    code = "import sys; from pathlib import Path; from hwprof.archive import *; print(agent_archive(Path(sys.argv[1])))"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(ran.stdout.strip()).name != agent_archive(tmp_path / "here").name


def test_only_sources_travel(tmp_path: Path) -> None:
    names = zipfile.ZipFile(agent_archive(tmp_path)).namelist()
    assert all(name.endswith(".py") for name in names)
    assert {"__main__.py", "hwprof/__main__.py", "hwprof/runtimes/onnxruntime.py"} <= set(names)


def newer_than_the_oldest(source: str) -> list[str]:
    """Names and arguments in a source that came after OLDEST_PYTHON; raises SyntaxError on syntax that did."""
    found = []
    for node in ast.walk(ast.parse(source, feature_version=OLDEST_PYTHON)):
        if isinstance(node, ast.keyword) and node.arg in {"strict", "slots", "kw_only"}:
            found.append(f"{node.arg}=")
        if isinstance(node, ast.Attribute) and node.attr in {"pairwise", "removeprefix", "removesuffix", "bit_count"}:
            found.append(node.attr)
        # Types that are evaluated when the module is imported; annotations are not.
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
            value = node.value.value
            if isinstance(value, ast.Name) and value.id in {"dict", "list", "tuple", "type", "Callable", "Mapping"}:
                found.append(f"{value.id}[]")
    return found


def agent_files() -> set[Path]:
    """What runs on the device; the other files travel too, but nothing imports them there."""
    code = "import sys, hwprof.agent; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('hwprof')))"
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return {*map(Path, ran.stdout.split()), *(SOURCES / "hwprof" / "runtimes").glob("*.py")}


def test_what_runs_on_a_device_is_for_old_pythons() -> None:
    files = agent_files()
    assert {"agent.py", "host.py", "lock.py", "timing.py", "onnxruntime.py"} <= {path.name for path in files}
    assert "client.py" not in {path.name for path in files}
    newer = {path.name: newer_than_the_oldest(path.read_text(encoding="utf-8")) for path in files}
    assert {name: found for name, found in newer.items() if found} == {}


@pytest.mark.parametrize("source", ["zip(a, b, strict=True)", "itertools.pairwise(a)", "Message = dict[str, int]"])
def test_newer_python_is_found(source: str) -> None:
    assert newer_than_the_oldest(source)


def test_newer_syntax_is_found() -> None:
    with pytest.raises(SyntaxError):
        newer_than_the_oldest("match a:\n    case 1: pass")


def pythons(*versions: str) -> list[str]:
    """The interpreters of these versions that this machine has; skips the test if it has none."""
    found = [path for version in versions if (path := shutil.which(f"python{version}"))]
    running = [path for path in found if not subprocess.run([path, "-c", ""], capture_output=True).returncode]
    if not running:
        pytest.skip(f"needs one of the Pythons {', '.join(versions)}")
    return running


def test_a_python_that_is_too_old_is_told(tmp_path: Path) -> None:
    for python in pythons("2.7", "3.6", "3.7"):
        done = subprocess.run([python, str(agent_archive(tmp_path))], input="", capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("the agent needs Python 3.8 or newer, this is ")


def test_the_agent_runs_on_other_pythons(tmp_path: Path) -> None:
    for python in pythons("3.8", "3.9", "3.10", "3.12", "3.13"):
        # Without a runtime it answers that there is none, which takes all of the agent's own files.
        answer = run_agent(agent_archive(tmp_path), python)
        assert answer["event"] == "ready" or answer["kind"] == "RuntimeMissingError", python


def test_files_of_one_model_are_known(tmp_path: Path) -> None:
    for name in ("net.param", "net.bin", "other.param", "model.xml", "model.bin", "alone.onnx", "alone.bin"):
        (tmp_path / name).write_text("x")
    assert companions(tmp_path / "net.param") == (tmp_path / "net.bin",)
    assert companions(tmp_path / "model.xml") == (tmp_path / "model.bin",)
    assert companions(tmp_path / "other.param") == ()
    assert companions(tmp_path / "alone.onnx") == ()
