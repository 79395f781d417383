"""The shipped conformance suite on our TensorRT runtime, on a stand-in for TensorRT that ONNX Runtime computes.

So the files that are written for TensorRT, everything that goes between host and device, and the names of layers are
those of the real thing; the kernels are not. On a machine with TensorRT, tests/testing/test_check_runtime.py runs it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from agents import ScriptDevice
from fake_gpu import install_driver

from hwnas.testing.runtimes import check_runtime
from hwprof.target import Target

AGENT = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from fake_tensorrt import fake_module
    import hwprof.cuda
    hwprof.cuda.LIBRARY = {driver!r}
    sys.modules["tensorrt"], _ = fake_module({version!r}, Path({driver!r}))
    from hwprof.agent import main
    main()
"""


@pytest.mark.parametrize(
    ("version", "precision"),
    [("8.6.1", "fp32"), ("10.16.1.11", "fp16"), ("11.4.0.106", "int8")],
)
def test_conformance(version: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = str(install_driver(tmp_path, monkeypatch))
    monkeypatch.setenv("HWPROF_CACHE", str(tmp_path / "cache"))
    script = AGENT.format(tests=str(Path(__file__).parent), driver=driver, version=version)
    check_runtime(Target(runtime="tensorrt", precision=precision), ScriptDevice(script=script))
