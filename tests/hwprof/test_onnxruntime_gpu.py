"""ONNX Runtime's CUDA and TensorRT providers, without a GPU: what is asked of them, and that the CPU never stands in.

The stand-in for a session computes on the CPU and says that it is what was asked for.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from agents import write_model
from fake_gpu import install_driver

from hwprof.errors import AcceleratorError, MeasurementError, RuntimeMissingError, TargetError
from hwprof.runtimes import make_runtime
from hwprof.target import Target

RUNTIMES = {"onnxruntime-cuda": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}
RUN_MS = 0.5


class Session:
    """A session of the CPU under another name; a run takes RUN_MS of the GPU."""

    def __init__(self, path: str, options: ort.SessionOptions, providers: list[Any], enable_fallback: int) -> None:
        self.asked = {
            "level": options.graph_optimization_level,
            "cpu_refused": options.get_session_config_entry("session.disable_cpu_ep_fallback"),
            "provider": providers[0],
            "enable_fallback": enable_fallback,
        }
        self._providers = [providers[0][0], "CPUExecutionProvider"]
        self._session = REAL_SESSION(path, providers=["CPUExecutionProvider"])
        self.runs = 0
        SESSIONS.append(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return self._providers

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1
        DRIVER[0].fake_work(ctypes.c_double(RUN_MS))
        self._session.run_with_iobinding(binding)


REAL_SESSION = ort.InferenceSession
SESSIONS: list[Session] = []
DRIVER: list[ctypes.CDLL] = []


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu and a GPU, as far as can be seen from our code."""
    DRIVER[:] = [ctypes.CDLL(str(install_driver(tmp_path, monkeypatch)))]
    SESSIONS.clear()
    monkeypatch.setenv("HWPROF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")  # to be taken away again
    monkeypatch.setattr(ort, "get_available_providers", lambda: [*RUNTIMES.values(), "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(ort, "InferenceSession", Session)
    for name in ("ortvalue_from_numpy", "ortvalue_from_shape_and_type"):
        monkeypatch.setattr(ort.OrtValue, name, on_the_cpu(getattr(ort.OrtValue, name)))


def on_the_cpu(make: Any) -> Any:
    def made(*arguments: Any) -> Any:
        assert arguments[-2:] == ("cuda", 0)
        return make(*arguments[:-2])

    return staticmethod(made)


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_build_for_the_cpu_is_not_the_runtime(name: str) -> None:
    if RUNTIMES[name] in ort.get_available_providers():
        pytest.skip(f"this onnxruntime is a build with {RUNTIMES[name]}")
    with pytest.raises(RuntimeMissingError, match=rf"build without {RUNTIMES[name]}.* pip install onnxruntime-gpu"):
        make_runtime(name)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.usefixtures("gpu")
def test_without_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    runtime = make_runtime(name)
    with pytest.raises(AcceleratorError, match="no GPU"):
        runtime.versions()
    with pytest.raises(AcceleratorError, match="no GPU"):
        runtime.load(Path("m.onnx"), Target(runtime=name), profile_nodes=False)


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.usefixtures("gpu")
def test_versions(name: str) -> None:
    versions = make_runtime(name).versions()
    assert versions["onnxruntime"] == ort.__version__
    assert versions["provider"] == RUNTIMES[name]
    assert versions["accelerator"] == "Fake GPU, compute capability 8.6"
    assert ("tensorrt" in versions) == (name == "onnxruntime-tensorrt")


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.usefixtures("gpu")
def test_what_is_asked_of_onnx_runtime(name: str, tmp_path: Path) -> None:
    runtime: Any = make_runtime(name)
    runtime.load(write_model(tmp_path / "m.onnx"), Target(runtime=name, optimisation="basic"), profile_nodes=False)
    asked = SESSIONS[0].asked
    assert asked["level"] == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert (asked["cpu_refused"], asked["enable_fallback"]) == ("1", 0)
    provider, settings = asked["provider"]
    assert provider == RUNTIMES[name]
    assert settings["user_compute_stream"] == str(runtime._gpu.stream) != "0"
    assert settings["device_id"] == "0"
    if name == "onnxruntime-cuda":
        assert (settings["enable_cuda_graph"], settings["use_tf32"]) == ("1", "0")
    else:
        assert (settings["trt_cuda_graph_enable"], settings["trt_fp16_enable"]) == ("True", "False")
        assert Path(settings["trt_timing_cache_path"]).is_dir()
        assert os.environ["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.usefixtures("gpu")
def test_tf32_if_asked_for(name: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    make_runtime(name).load(model, Target(runtime=name, optimisation="all+tf32"), profile_nodes=False)
    _, settings = SESSIONS[0].asked["provider"]
    assert settings.get("use_tf32", os.environ["NVIDIA_TF32_OVERRIDE"]) == "1"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("precision", "int8"), [("fp16", "False"), ("int8", "True")])
def test_precisions_of_the_tensorrt_provider(precision: str, int8: str, tmp_path: Path) -> None:
    target = Target(runtime="onnxruntime-tensorrt", precision=precision)
    make_runtime(target.runtime).load(write_model(tmp_path / "m.onnx"), target, profile_nodes=False)
    settings = SESSIONS[0].asked["provider"][1]
    assert (settings["trt_fp16_enable"], settings["trt_int8_enable"]) == ("True", int8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"optimisation": "most"}, "no optimisation level 'most'"), ({"threads": 4}, "set threads = 1")],
)
@pytest.mark.usefixtures("gpu")
def test_targets_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    target = replace(Target(runtime="onnxruntime-cuda"), **changes)
    with pytest.raises(TargetError, match=message):
        make_runtime(target.runtime).clock(target)
    with pytest.raises(TargetError, match=message):
        make_runtime(target.runtime).load(Path("m.onnx"), target, profile_nodes=False)


@pytest.mark.usefixtures("gpu")
def test_a_run_takes_what_the_gpu_took(tmp_path: Path) -> None:
    target = Target(runtime="onnxruntime-cuda")
    runtime = make_runtime(target.runtime)
    clock = runtime.clock(target)
    model = runtime.load(write_model(tmp_path / "m.onnx"), target, profile_nodes=True)
    warmed_up = SESSIONS[0].runs
    assert warmed_up >= 3  # two before the graph is recorded, one that records it
    begin = clock.wall()
    model.run()
    assert clock.wall() - begin == RUN_MS * 1e6
    assert (clock.cpu, SESSIONS[0].runs) == (None, warmed_up + 1)
    assert model.close() is None


@pytest.mark.usefixtures("gpu")
def test_infer_computes_what_the_session_does(tmp_path: Path) -> None:
    target = Target(runtime="onnxruntime-cuda", batch=2)
    path = write_model(tmp_path / "m.onnx", shape=("n", 4, 6, 6))
    model = make_runtime(target.runtime).load(path, target, profile_nodes=False)
    expected = REAL_SESSION(str(path), providers=["CPUExecutionProvider"])
    for seed in range(2):
        images = np.random.default_rng(seed).standard_normal((2, 4, 6, 6), dtype=np.float32)
        (output,) = model.infer([images])
        np.testing.assert_allclose(output, expected.run(None, {"x": images})[0], rtol=1e-6)
    with pytest.raises(MeasurementError, match=r"takes inputs of \[\(2, 4, 6, 6\)\]"):
        model.infer([images[:1]])


@pytest.mark.usefixtures("gpu")
def test_a_provider_that_became_the_cpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "get_providers", lambda self: ["CPUExecutionProvider"])
    target = Target(runtime="onnxruntime-cuda")
    with pytest.raises(MeasurementError, match="did not start, and the CPU would take its place"):
        make_runtime(target.runtime).load(write_model(tmp_path / "m.onnx"), target, profile_nodes=False)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.usefixtures("gpu")
def test_onnx_runtime_itself_refuses_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it has no such provider at all; where one has, but cannot start it, the same setting refuses."""
    monkeypatch.setattr(ort, "InferenceSession", REAL_SESSION)
    target = Target(runtime="onnxruntime-cuda")
    with pytest.raises(MeasurementError, match=r"cannot run m\.onnx on CUDAExecutionProvider: .*CPU EP"):
        make_runtime(target.runtime).load(write_model(tmp_path / "m.onnx"), target, profile_nodes=False)


@pytest.mark.usefixtures("gpu")
def test_a_run_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(runtime="onnxruntime-cuda")
    model = make_runtime(target.runtime).load(write_model(tmp_path / "m.onnx"), target, profile_nodes=False)

    def fail(self: Session, binding: Any) -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(Session, "run_with_iobinding", fail)
    with pytest.raises(MeasurementError, match=r"cannot run m\.onnx: illegal memory access"):
        model.run()
