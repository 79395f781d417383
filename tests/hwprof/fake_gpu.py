"""A GPU for tests on any machine: the stand-in for the driver (fake_driver.c), compiled, loaded as a fresh copy."""

from __future__ import annotations

import ctypes
import functools
import importlib
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from fake_tensorrt import Recorder, fake_module

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
SOURCE = Path(__file__).with_name("fake_driver.c")
TENSORRT = ("hwprof.runtimes.tensorrt", "hwprof.runtimes.tensorrt_builder", "tensorrt")


@functools.lru_cache(maxsize=1)
def compiled() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "driver.so"
        # Its functions take what the real ones take, used or not.
        command = [str(COMPILER), "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
        return library.read_bytes()


def install_driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as the driver of this process; a copy of its own, as a library that is loaded keeps its state."""
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("the stand-in for the NVIDIA driver needs Linux and a C compiler (cc, gcc or clang)")
    library = folder / "libcuda.so.1"
    library.write_bytes(compiled())
    monkeypatch.setattr("hwprof.cuda.LIBRARY", str(library))
    return library


@dataclass
class FakeTensorRt:
    """The modules of our runtime, imported with a stand-in for the tensorrt package."""

    runtime: ModuleType
    builder: ModuleType
    recorder: Recorder
    driver: ctypes.CDLL

    def calls(self, name: str) -> int:
        return int(self.driver.fake_calls(name.encode()))


def install_tensorrt(version: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    """Import our runtime on TensorRT of that version; `monkeypatch` takes it away again."""
    driver = install_driver(folder, monkeypatch)
    module, recorder = fake_module(version, driver)
    monkeypatch.setenv("HWPROF_CACHE", str(folder / "cache"))
    for name in TENSORRT:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    builder = importlib.import_module("hwprof.runtimes.tensorrt_builder")
    runtime = importlib.import_module("hwprof.runtimes.tensorrt")
    for name in TENSORRT[:2]:  # seen by monkeypatch, so that they go with the stand-in that they were made on
        monkeypatch.setitem(sys.modules, name, sys.modules.pop(name))
    return FakeTensorRt(runtime, builder, recorder, recorder.driver)
