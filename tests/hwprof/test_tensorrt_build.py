"""How engines are built, in the order of the calls, for TensorRT 8.6, 10 and 11: on a stand-in for TensorRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_gpu import FakeTensorRt, install_tensorrt
from onnx import TensorProto, helper, numpy_helper

from hwprof.errors import MeasurementError, TargetError
from hwprof.target import Target

VERSIONS = ("8.6.1", "10.16.1.11", "11.4.0.106")
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
GPU = Target(runtime="tensorrt")


@pytest.fixture(params=VERSIONS)
def fake(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt(request.param, tmp_path, monkeypatch)


@pytest.fixture
def fake10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt("10.16.1.11", tmp_path, monkeypatch)


@pytest.fixture
def fake8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    return install_tensorrt("8.6.1", tmp_path, monkeypatch)


def write(
    path: Path, precision: str = "fp32", batch: int | str = 1, operator: str = "Add", size: int | str = 2
) -> Path:
    """Two nodes that add; a node's doc_string tells the stand-in the type of what it computes, if not the input's."""
    kind = TYPES.get(precision, TensorProto.FLOAT)
    nodes = [helper.make_node(operator, ["x", "x"], ["b0:y"], name="b0:add")]
    if precision == "int8":
        nodes[0].doc_string = "INT8"
    nodes.append(helper.make_node(operator, ["b0:y", "b0:y"], ["y"], name="b1:add"))
    shape = (batch, 3, size, 2)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def build(fake: FakeTensorRt, model: Path, target: Target = GPU, **settings: Any) -> list[str]:
    runtime = fake.runtime.TensorRtRuntime()
    fake.recorder.events.clear()
    runtime.build_engine(model, model.with_suffix(".engine"), target, **settings)
    return fake.recorder.events


def test_the_order_of_calls(fake10: FakeTensorRt, tmp_path: Path) -> None:
    assert build(fake10, write(tmp_path / "m.onnx")) == [
        "network flags 2",
        "parse opset 18",
        "builder_optimization_level = 3",
        "profiling_verbosity = DETAILED",
        "clear TF32",
        "timing cache with 0",
        "build",
        "combine timing caches",
        "engine_host_code_allowed = False",
    ]


def test_networks_are_strongly_typed_since_10(fake: FakeTensorRt, tmp_path: Path) -> None:
    """Bit 0 is EXPLICIT_BATCH in 8, bit 1 STRONGLY_TYPED in 10; 11 knows nothing else and has no such bit."""
    assert build(fake, write(tmp_path / "m.onnx"))[0] == f"network flags { {8: 1, 10: 2, 11: 0}[fake.recorder.major] }"


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_precision_is_the_files_and_in_8_a_flag(fake: FakeTensorRt, tmp_path: Path, precision: str) -> None:
    events = build(fake, write(tmp_path / "m.onnx", precision), Target(runtime="tensorrt", precision=precision))
    flags = [event for event in events if event.startswith("set ")]
    old = ["set FP16", "set INT8"] if precision == "int8" else ["set FP16"]
    assert flags == (old if fake.recorder.major < 10 else [])


def test_bf16_is_nothing_for_8(fake: FakeTensorRt, tmp_path: Path) -> None:
    model, target = write(tmp_path / "m.onnx", "bf16"), Target(runtime="tensorrt", precision="bf16")
    if fake.recorder.major >= 10:
        assert "build" in build(fake, model, target)
    else:
        with pytest.raises(TargetError, match=r"8\.6\.1 has no bf16"):
            build(fake, model, target)


@pytest.mark.parametrize(
    ("written", "named"), [("fp32", "fp16"), ("fp16", "fp32"), ("fp16", "bf16"), ("fp32", "int8"), ("int8", "fp16")]
)
def test_a_file_in_another_precision_is_refused(fake10: FakeTensorRt, tmp_path: Path, written: str, named: str) -> None:
    with pytest.raises(MeasurementError, match=rf"m.onnx computes in .* which is not {named}"):
        build(fake10, write(tmp_path / "m.onnx", written), Target(runtime="tensorrt", precision=named))
    assert "build" not in fake10.recorder.events


@pytest.mark.parametrize(
    ("optimisation", "expected"),
    [
        ("none", "builder_optimization_level = 0"),
        ("exhaustive", "builder_optimization_level = 5"),
        ("all+version-compatible", "set VERSION_COMPATIBLE"),
        ("all+hardware-compatible", "hardware_compatibility_level = AMPERE_PLUS"),
    ],
)
def test_options_of_the_target(fake: FakeTensorRt, tmp_path: Path, optimisation: str, expected: str) -> None:
    target = Target(runtime="tensorrt", optimisation=optimisation)
    assert expected not in build(fake, write(tmp_path / "m.onnx"))
    assert expected in build(fake, write(tmp_path / "m.onnx"), target)


def test_tf32_only_if_asked_for(fake: FakeTensorRt, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    assert "clear TF32" in build(fake, model)
    assert "clear TF32" not in build(fake, model, Target(runtime="tensorrt", optimisation="all+tf32"))


def test_an_engine_with_code_is_run_only_if_asked_for(fake: FakeTensorRt, tmp_path: Path) -> None:
    target = Target(runtime="tensorrt", optimisation="all+version-compatible")
    assert "engine_host_code_allowed = False" in build(fake, write(tmp_path / "m.onnx"))
    assert "engine_host_code_allowed = True" in build(fake, write(tmp_path / "m.onnx"), target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimisation": "most"}, "no optimisation level 'most'; it has none, basic, extended, all, exhaustive"),
        ({"optimisation": "all+refit"}, r"no option 'refit' .*; it has tf32, version-compatible"),
        ({"optimisation": "all+"}, "no option ''"),
        ({"threads": 2}, "set threads = 1"),
    ],
)
def test_targets_that_cannot_be(fake10: FakeTensorRt, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        fake10.builder.settings_for(Target(runtime="tensorrt", **changes))


@pytest.mark.parametrize("batches", [(0, 1, 4), (4, 2, 8), (1, 4, 2), (2, 4, 8)])
def test_batches_that_cannot_be(fake10: FakeTensorRt, batches: tuple[int, int, int]) -> None:
    with pytest.raises(TargetError, match=r"1 <= min <= opt <= max and hold 1"):
        fake10.builder.settings_for(GPU, batches=batches)


def test_a_dynamic_batch_has_a_profile(fake: FakeTensorRt, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx", batch="n")
    target = Target(runtime="tensorrt", batch=4)
    events = build(fake, model, target)
    first = events.index("profile x (4, 3, 2, 2) (4, 3, 2, 2) (4, 3, 2, 2)")
    assert events[first + 1] == "add profile"
    assert first < events.index("build")
    assert "profile x (1, 3, 2, 2) (4, 3, 2, 2) (8, 3, 2, 2)" in build(fake, model, target, batches=(1, 4, 8))


def test_a_fixed_batch_must_be_the_targets(fake: FakeTensorRt, tmp_path: Path) -> None:
    assert not [event for event in build(fake, write(tmp_path / "m.onnx", batch=1)) if "profile" in event.split()]
    with pytest.raises(MeasurementError, match="has batch 3, the target has 1"):
        build(fake, write(tmp_path / "m.onnx", batch=3))
    with pytest.raises(MeasurementError, match="only the batch may be dynamic"):
        build(fake, write(tmp_path / "m.onnx", size="height"))


def test_a_workspace_limit(fake: FakeTensorRt, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    assert not [event for event in build(fake, model) if "WORKSPACE" in event]
    assert "WORKSPACE <= 1048576" in build(fake, model, workspace_bytes=1 << 20)


def test_parse_errors_name_the_node_and_the_reason(fake: FakeTensorRt, tmp_path: Path) -> None:
    node = "node 0" if fake.recorder.major < 10 else r"node b3:strange \(Strange\)"
    expected = rf"{fake.recorder.version} cannot read m.onnx: {node}: no importer registered for op: Strange"
    with pytest.raises(MeasurementError, match=expected):
        build(fake, write(tmp_path / "m.onnx", operator="Strange"))


def test_build_errors_are_what_tensorrt_logged(fake: FakeTensorRt, tmp_path: Path) -> None:
    fake.recorder.broken.add("build")
    with pytest.raises(MeasurementError, match=r"cannot build m.onnx: no implementation for node b3:conv$"):
        build(fake, write(tmp_path / "m.onnx"))
    assert not (tmp_path / "m.engine").exists()


def test_what_a_build_reports(fake: FakeTensorRt, tmp_path: Path) -> None:
    engine, inspector = tmp_path / "out" / "m.engine", tmp_path / "out" / "m.json"
    runtime = fake.runtime.TensorRtRuntime()
    report = runtime.build_engine(write(tmp_path / "m.onnx"), engine, GPU, inspector=inspector)
    assert report.layers == 2
    assert report.size_bytes == engine.stat().st_size > 0
    assert report.seconds >= 0
    assert inspector.read_text() == report.inspector
    assert [layer["Name"] for layer in json.loads(report.inspector)["Layers"]] == ["b0:add + b0:add.2", "__myl_Add_add"]


def timing_caches(folder: Path) -> list[Path]:
    return sorted((folder / "cache").glob("*.timing"))


def test_the_timing_cache_is_kept_per_gpu_and_version(fake: FakeTensorRt, tmp_path: Path) -> None:
    model = write(tmp_path / "m.onnx")
    build(fake, model)
    (cache,) = timing_caches(tmp_path)
    assert cache.name == f"tensorrt-{fake.recorder.version}-fake-gpu-sm-8-6.timing"
    assert cache.read_text().split() == ["b0:add", "b1:add"]
    assert "timing cache with 2" in build(fake, model)


def test_a_timing_cache_beside_the_table(fake10: FakeTensorRt, tmp_path: Path) -> None:
    beside = tmp_path / "tables" / "gpu.timing"
    build(fake10, write(tmp_path / "m.onnx"), timing_cache=beside)
    assert beside.read_text().split() == ["b0:add", "b1:add"]
    assert timing_caches(tmp_path) == []


@pytest.mark.parametrize("content", ["garbage", "another-gpu"])
def test_a_timing_cache_that_is_of_no_use_is_begun_anew(fake10: FakeTensorRt, tmp_path: Path, content: str) -> None:
    model, cache = write(tmp_path / "m.onnx"), tmp_path / "t.timing"
    cache.write_text(content)
    assert "timing cache with 0" in build(fake10, model, timing_cache=cache)
    assert {"b0:add", "b1:add"} <= {*cache.read_text().split()}


def test_what_another_process_learned_meanwhile_is_kept(
    fake10: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "t.timing"
    original = fake10.builder.trt.Builder.build_serialized_network

    def slow_build(*arguments: Any) -> Any:
        cache.write_text("learned-elsewhere")
        return original(*arguments)

    monkeypatch.setattr(fake10.builder.trt.Builder, "build_serialized_network", slow_build)
    build(fake10, write(tmp_path / "m.onnx"), timing_cache=cache)
    assert cache.read_text().split() == ["b0:add", "b1:add", "learned-elsewhere"]


def test_a_cache_that_cannot_be_written(fake10: FakeTensorRt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HWPROF_CACHE", str(tmp_path / "file"))
    with pytest.raises(MeasurementError, match="set HWPROF_CACHE to a folder"):
        build(fake10, write(tmp_path / "m.onnx"))


def reduction(path: Path, *, constant: bool = True, operator: str = "ReduceMean") -> Path:
    axes = [numpy_helper.from_array(np.array([-1, -2]), "axes")] if constant else []
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 4, 4))]
    if not constant:
        inputs.append(helper.make_tensor_value_info("axes", TensorProto.INT64, (2,)))
    node = helper.make_node(operator, ["x", "axes"], ["y"], name="b2:mean", keepdims=1)
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 3, 1, 1))
    graph = helper.make_graph([node], "mean", inputs, [output], axes)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def test_8_gets_reductions_as_it_reads_them(fake8: FakeTensorRt, tmp_path: Path) -> None:
    import onnxruntime

    from hwprof.runtimes.tensorrt_8 import older_onnx

    model = reduction(tmp_path / "m.onnx")
    assert "parse opset 17" in build(fake8, model)
    older = older_onnx(model)
    onnx.checker.check_model(onnx.load_from_string(older), full_check=True)
    images = np.random.default_rng(0).standard_normal((1, 3, 4, 4), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    (means,) = onnxruntime.InferenceSession(older, options, providers=["CPUExecutionProvider"]).run(None, {"x": images})
    assert np.allclose(means, images.mean(axis=(2, 3), keepdims=True), atol=1e-6)


def test_8_and_axes_that_are_computed(fake8: FakeTensorRt, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="axes of b2:mean, they are no constant"):
        build(fake8, reduction(tmp_path / "m.onnx", constant=False))


def test_an_empty_file(fake: FakeTensorRt, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(MeasurementError, match=r"m\.onnx holds no network"):
        build(fake, tmp_path / "m.onnx")


def test_8_and_what_is_no_onnx(fake8: FakeTensorRt, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match=r"m\.onnx is no ONNX file"):
        build(fake8, tmp_path / "m.onnx")


def test_since_10_files_are_read_as_they_are(fake10: FakeTensorRt, tmp_path: Path) -> None:
    assert "parse opset 18" in build(fake10, reduction(tmp_path / "m.onnx"))
