"""Agents of tests: with runtimes of their own, or that misbehave."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from hwprof.devices.local import LocalDevice

SOURCES = Path(__file__).resolve().parents[2] / "profilers"


def write_model(path: Path, shape: tuple[int | str, ...] = (1, 4, 12, 12), kernel: int = 3) -> Path:
    """A convolution and a softmax, of some ten microseconds."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, (4, 4, kernel, kernel), [0.1] * (16 * kernel * kernel))
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["b0:y"], name="b0:conv"),
            helper.make_node("Softmax", ["b0:y"], ["b1:z"], name="b1:softmax"),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("b1:z", TensorProto.FLOAT, None)],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@dataclass
class ScriptDevice(LocalDevice):
    """This machine, with an agent of its own making; keeps the processes it started."""

    script: str = "from hwprof.agent import main\nmain()"
    path: Path | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start_agent(self) -> subprocess.Popen[str]:
        folders = [str(SOURCES), *([str(self.path)] if self.path else [])]
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )
        self.started.append(process)
        return process


def runtime_device(source: str, folder: Path) -> ScriptDevice:
    """A device whose agent has one runtime more: "fake", the class Fake of `source`."""
    (folder / "fake_runtime.py").write_text(textwrap.dedent(source))
    kind = "runtimes.Kind('fake_runtime:Fake', 'onnx', ('fp32',), True, 'fake')"
    return ScriptDevice(f"from hwprof import agent, runtimes\nruntimes.RUNTIMES['fake'] = {kind}\nagent.main()", folder)
