"""How engines are run, timed and profiled, through the agent too: on stand-ins for TensorRT and for the driver."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import FakeTensorRt, install_tensorrt
from fake_tensorrt import MS_PER_LAYER
from test_tensorrt_build import VERSIONS, write

from hwprof import agent
from hwprof.errors import AcceleratorError, MeasurementError
from hwprof.target import Plan, Target, to_json

GPU = Target(runtime="tensorrt")
RUN_NS = round(2 * MS_PER_LAYER * 1e6)


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt(request.param, tmp_path, monkeypatch)


@pytest.fixture
def fake10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt("10.16.1.11", tmp_path, monkeypatch)


def test_a_run_takes_what_the_gpu_took(fake: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake.runtime.TensorRtRuntime()
    clock = runtime.clock(GPU)
    model = runtime.load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    assert clock.cpu is None
    for _ in range(3):
        begin = clock.wall()
        model.run()
        assert clock.wall() - begin == RUN_NS
    assert model.close() is None


def test_runs_are_one_launch_and_no_transfer(fake: FakeTensorRt, tmp_path: Path) -> None:
    model = fake.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    # Once to let TensorRT prepare itself, once into the graph.
    assert fake.recorder.events.count("execute") == 2
    copies = fake.calls("cuMemcpyHtoD_v2"), fake.calls("cuMemcpyDtoH_v2")
    for _ in range(5):
        model.run()
    assert fake.recorder.events.count("execute") == 2
    assert fake.calls("cuGraphLaunch") == 5
    assert (fake.calls("cuMemcpyHtoD_v2"), fake.calls("cuMemcpyDtoH_v2")) == copies == (1, 0)


def test_what_cannot_be_captured_is_launched_node_by_node(fake10: FakeTensorRt, tmp_path: Path) -> None:
    fake10.driver.fake_break_capture()
    runtime = fake10.runtime.TensorRtRuntime()
    model = runtime.load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    begin = runtime.clock(GPU).wall()
    model.run()
    assert runtime.clock(GPU).wall() - begin == RUN_NS
    assert fake10.calls("cuGraphLaunch") == 0


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.0), ("fp16", 1e-3), ("bf16", 2**-8)])
def test_infer_computes_what_the_engine_does(
    fake10: FakeTensorRt, tmp_path: Path, precision: str, tolerance: float
) -> None:
    target = replace(GPU, precision=precision, batch=2)
    model = fake10.runtime.TensorRtRuntime().load(
        write(tmp_path / "m.onnx", precision, batch=2), target, profile_nodes=False
    )
    images = np.random.default_rng(0).standard_normal((2, 3, 2, 2), dtype=np.float32)
    for factor in (1.0, 3.0):
        (output,) = model.infer([images * np.float32(factor)])
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, 2 * factor * images, rtol=tolerance)


def test_bfloat16_rounds_to_the_nearest(fake10: FakeTensorRt) -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159265, 1e30, 0.0], np.float32)
    torch = pytest.importorskip("torch")
    encoded = fake10.runtime._encode(values, "BF16")
    expected = torch.tensor(values).to(torch.bfloat16)
    assert np.array_equal(fake10.runtime._decode(encoded, "BF16"), expected.float().numpy())


def test_infer_of_other_shapes(fake10: FakeTensorRt, tmp_path: Path) -> None:
    model = fake10.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    with pytest.raises(MeasurementError, match=r"takes inputs of \[\(1, 3, 2, 2\)\], got \[\(1, 3, 4, 4\)\]"):
        model.infer([np.zeros((1, 3, 4, 4), np.float32)])


def test_layer_times_of_every_run(fake: FakeTensorRt, tmp_path: Path) -> None:
    """Layers say which nodes they are of: by their names, or by what the inspector tells where they have others."""
    model = fake.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=True)
    for _ in range(3):
        model.run()
    profile = model.close()
    assert profile is not None
    assert profile.names == ("b0:add + b0:add.2", "__myl_Add_add [b1:add + b1:add.2]")
    assert profile.us == (((MS_PER_LAYER * 1e3,) * 2),) * 3
    assert fake.calls("cuGraphLaunch") == 0


def test_blocks_are_found_in_the_names_of_layers(fake10: FakeTensorRt, tmp_path: Path) -> None:
    from hwnas.graphs.plain import block_index

    model = fake10.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=True)
    model.run()
    assert [block_index(name) for name in model.close().names] == [0, 1]
    fused = ("PWN(PWN(b12:sigmoid), b12:mul)", "{ForeignNode[b4:mean...b4:mul]}", "Reformatting CopyNode for Input 0")
    assert [block_index(name) for name in fused] == [12, 4, None]


def test_both_passes_run_the_same_engine(fake10: FakeTensorRt, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    for profile_nodes in (False, True, False):
        fake10.runtime.TensorRtRuntime().load(model, GPU, profile_nodes=profile_nodes)
    assert fake10.recorder.events.count("build") == 1


def test_another_engine_for_everything_that_makes_one(fake10: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake10.runtime.TensorRtRuntime()
    model = write(tmp_path / "m.onnx", batch="n")
    targets = [GPU, replace(GPU, batch=2), replace(GPU, optimisation="none"), replace(GPU, optimisation="all+tf32")]
    for target in targets:
        runtime.load(model, target, profile_nodes=False)
    runtime.load(write(tmp_path / "other.onnx", batch="n", size=4), GPU, profile_nodes=False)
    assert fake10.recorder.events.count("build") == 5
    # The name of a file is none of it.
    model.rename(tmp_path / "renamed.onnx")
    runtime.load(tmp_path / "renamed.onnx", GPU, profile_nodes=False)
    assert fake10.recorder.events.count("build") == 5


def test_the_oldest_engines_go(fake10: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake10.runtime.TensorRtRuntime()
    runtime.load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    (first,) = (tmp_path / "cache" / "engines").iterdir()
    os.utime(first, (1, 1))
    monkeypatch.setattr("hwprof.runtimes.tensorrt_cache.LARGEST_BYTES", 3 * first.stat().st_size // 2)
    runtime.load(write(tmp_path / "n.onnx", size=4), GPU, profile_nodes=False)
    (left,) = (tmp_path / "cache" / "engines").iterdir()
    assert left != first


def test_an_engine_file_is_run_as_it_is(fake: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake.runtime.TensorRtRuntime()
    runtime.build_engine(write(tmp_path / "m.onnx", batch="n"), tmp_path / "m.engine", GPU, batches=(1, 2, 4))
    fake.recorder.events.clear()
    for batch in (1, 4):
        model = runtime.load(tmp_path / "m.engine", replace(GPU, batch=batch), profile_nodes=False)
        assert model.infer([np.ones((batch, 3, 2, 2), np.float32)])[0].shape == (batch, 3, 2, 2)
    assert "build" not in fake.recorder.events


@pytest.mark.parametrize("name", ["gone.onnx", "gone.engine"])
def test_a_file_that_is_not_there(fake10: FakeTensorRt, tmp_path: Path, name: str) -> None:
    with pytest.raises(MeasurementError, match=f"{name} cannot be read"):
        fake10.runtime.TensorRtRuntime().load(tmp_path / name, GPU, profile_nodes=False)


def test_an_engine_of_another_batch(fake10: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake10.runtime.TensorRtRuntime()
    runtime.build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.plan", GPU)
    with pytest.raises(MeasurementError, match="has no batch 2"):
        runtime.load(tmp_path / "m.plan", replace(GPU, batch=2), profile_nodes=False)
    assert fake10.driver.fake_live_buffers() == 0


def test_an_engine_of_another_version(fake10: FakeTensorRt, tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"not an engine")
    with pytest.raises(MeasurementError, match=r"cannot load the engine of m\.plan: the plan is of another version"):
        fake10.runtime.TensorRtRuntime().load(tmp_path / "m.plan", GPU, profile_nodes=False)


def test_an_engine_that_knows_only_names_is_profiled_by_them(fake10: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake10.runtime.TensorRtRuntime()
    runtime.build_engine(write(tmp_path / "m.onnx"), tmp_path / "m.plan", GPU, detailed=False)
    model = runtime.load(tmp_path / "m.plan", GPU, profile_nodes=True)
    model.run()
    assert model.close().names == ("b0:add + b0:add.2", "__myl_Add_add")


@pytest.mark.parametrize(
    ("broken", "message"), [("context", "the GPU has no room for m.onnx"), ("execute", "cannot run m.onnx")]
)
def test_what_fails_at_loading_leaves_nothing(fake10: FakeTensorRt, tmp_path: Path, broken: str, message: str) -> None:
    fake10.recorder.broken.add(broken)
    with pytest.raises(MeasurementError, match=message):
        fake10.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False)
    assert fake10.driver.fake_live_buffers() == fake10.driver.fake_live_graphs() == 0


def test_closing_frees_everything(fake10: FakeTensorRt, tmp_path: Path) -> None:
    runtime = fake10.runtime.TensorRtRuntime()
    models = [runtime.load(write(tmp_path / "m.onnx"), GPU, profile_nodes=False) for _ in range(2)]
    assert fake10.driver.fake_live_buffers() == 4
    for model in models:
        model.close()
    assert fake10.driver.fake_live_buffers() == fake10.driver.fake_live_graphs() == 0


def test_a_profile_that_changes_is_refused(fake10: FakeTensorRt, tmp_path: Path) -> None:
    model = fake10.runtime.TensorRtRuntime().load(write(tmp_path / "m.onnx"), GPU, profile_nodes=True)
    model.run()
    model._layers._runs.append([("b0:add", 1.0)])
    with pytest.raises(MeasurementError, match="do not list the same layers"):
        model.close()
    assert fake10.driver.fake_live_buffers() == 0


def test_versions(fake: FakeTensorRt) -> None:
    versions = fake.runtime.TensorRtRuntime().versions()
    assert versions["tensorrt"] == fake.recorder.version
    assert versions["accelerator"] == "Fake GPU, compute capability 8.6"


def test_without_a_gpu_tensorrt_is_not_even_asked(fake: FakeTensorRt, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own Runtime ends the process there, as 8.6.0 does."""
    monkeypatch.setenv("FAKE_NO_GPU", "1")
    monkeypatch.setattr(fake.runtime.trt, "Runtime", lambda log: pytest.fail("TensorRT was asked"))
    runtime = fake.runtime.TensorRtRuntime()
    with pytest.raises(AcceleratorError, match="no GPU"):
        runtime.versions()
    with pytest.raises(AcceleratorError, match="no GPU"):
        runtime.load(Path("m.onnx"), GPU, profile_nodes=False)


def test_through_the_agent(fake: FakeTensorRt, tmp_path: Path) -> None:
    small, large = write(tmp_path / "small.onnx"), write(tmp_path / "large.onnx", size=4)
    np.save(tmp_path / "x.npy", np.ones((1, 3, 2, 2), np.float32))
    group = {"job": "group", "models": {"m": str(large)}, "anchors": {"a": str(small)}, "seed": 0, "nodes": True}
    jobs: list[dict[str, Any]] = [
        {"job": "open", "target": to_json(GPU)},
        {**group, "plan": to_json(Plan(sweeps=3, max_sweeps=3))},
        {"job": "infer", "model": str(small), "inputs": [str(tmp_path / "x.npy")]},
    ]
    answers = io.StringIO()
    agent.serve([json.dumps(job) for job in jobs], answers)
    events = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [event for event in events if event["event"] == "error"] == []
    assert events[0]["versions"]["tensorrt"] == fake.recorder.version
    (result,) = (event for event in events if event["event"] == "result")
    assert result["refused"] is None
    assert result["ratio"] == 1.0  # as many layers
    assert [ratio for _, ratio in result["nodes"]] == pytest.approx([0.5, 0.5])
    output = base64.b64decode(events[-1]["outputs"][0]["float32"])
    assert np.frombuffer(output, "<f4").tolist() == [2.0] * 12
