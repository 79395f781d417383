"""What ONNX Runtime's CPU provider does with files in fp16, bf16 and int8."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from agents import write_model
from onnx import TensorProto

from hwnas.graphs import write_arch
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.plain import block_index, plain_graph
from hwnas.latency.rows import position_times
from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes.onnxruntime import OnnxRuntime, _node_profile
from hwprof.target import Plan, Target

PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=9.0, max_spread=9.0, max_drift=9.0)
SPACES = (MobileNetV3Space(resolutions=(64,), depths=(1, 2)), NasBench201Space(cells=2))


def some_arch(space: SearchSpace) -> Arch:
    return rows_of(space.sample(1, np.random.default_rng(2)))[0]


def optimised(path: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(path.with_name("optimised.onnx"))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM has convolutions in half precision")
def test_half_precision_is_float32_between_casts_on_x86(tmp_path):
    path = write_arch(SPACES[0], some_arch(SPACES[0]), Target(precision="fp16"), tmp_path / "net")
    written, run = onnx.load(path), optimised(path)
    casts = [Counter(node.op_type for node in model.graph.node)["Cast"] for model in (written, run)]
    assert casts[0] == 2
    assert casts[1] > 20
    kinds = [{tensor.name: tensor.data_type for tensor in model.graph.initializer} for model in (written, run)]
    for model, kind, expected in zip((written, run), kinds, (TensorProto.FLOAT16, TensorProto.FLOAT), strict=True):
        weights = [node.input[1] for node in model.graph.node if node.op_type in ("Conv", "FusedConv")]  # of any domain
        assert weights
        assert {kind[name] for name in weights} == {expected}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_block_gets_its_kernels(tmp_path, space, precision):
    """Kernels without a tag (casts, changes of layout, parts of a function) follow the block that they belong to."""
    target, arch = Target(precision=precision), some_arch(space)
    model = OnnxRuntime().load(write_arch(space, arch, target, tmp_path / "net"), target, profile_nodes=True)
    for _ in range(3):
        model.run()
    found = model.close()
    assert found is not None
    times = position_times(list(zip(found.names, found.us[-1], strict=True)))
    placed = {space.positions.index(position) for position, _ in space.placed_blocks(arch)}
    assert set(times) <= placed
    # sums are fused into convolutions, equal pools of one tensor are computed once
    assert len(times) == len(placed) if space.name == "mobilenetv3" else len(times) > 0.6 * len(placed)
    tags = [number for number in map(block_index, found.names) if number is not None]
    assert len(tags) >= len(placed)
    if precision == "int8":  # a pair is named after the node that reads it, so it is that block's
        assert any("dequantized" in name for name in found.names)


def test_names_of_nodes_behind_a_cast():
    names = ["InsertedPrecisionFreeCast_b3:conv_nchwc", "b4:add", "Cast_7"]
    events = [{"cat": "Node", "name": f"{name}_kernel_time", "dur": 2} for name in names]
    found = _node_profile([*events, {"name": "model_run"}])
    assert found.names == ("b3:conv_nchwc", "b4:add", "Cast_7")
    assert [block_index(name) for name in found.names] == [3, 4, None]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_groups_are_measured_and_inputs_stay_float32(tmp_path, precision):
    target = Target(precision=precision, batch=2)
    space = SPACES[1]
    path = write_arch(space, some_arch(space), target, tmp_path / "net")
    images = np.zeros((2, 3, 32, 32), np.float32)
    np.save(tmp_path / "images.npy", images)
    with AgentClient(make_device("local"), target) as client:
        group = client.measure({"net": path}, {"anchor": path}, PLAN, nodes=True)
        (output,) = client.infer(path, [tmp_path / "images.npy"])
    (result,) = group.results
    assert result.ratio > 0
    assert result.nodes is not None
    assert all(ratio >= 0 for _, ratio in result.nodes)
    assert output.shape == (2, space.num_classes)


def test_bfloat16_is_refused(tmp_path):
    target = Target(precision="bf16")
    with (
        pytest.raises(TargetError, match="onnxruntime has no precision 'bf16'; it has fp32, fp16, int8"),
        AgentClient(make_device("local"), target),
    ):
        pass
    space = SPACES[1]
    net = space.build(some_arch(space)).eval()
    onnx.save(onnx_model(plain_graph(net, [(3, 32, 32)]), "bf16"), tmp_path / "net.onnx")
    with pytest.raises(MeasurementError, match=r"cannot load net\.onnx.*NOT_IMPLEMENTED"):
        OnnxRuntime().load(tmp_path / "net.onnx", Target(), profile_nodes=False)


def test_unknown_operators_and_damaged_files(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    whole = onnx.load(path)
    whole.graph.node[1].op_type = "Nonsense"
    onnx.save(whole, path)
    with pytest.raises(MeasurementError, match=r"cannot load m\.onnx.*Nonsense"):
        OnnxRuntime().load(path, Target(), profile_nodes=False)
    path.write_bytes(whole.SerializeToString()[:-20])
    with pytest.raises(MeasurementError, match=r"cannot load m\.onnx"):
        OnnxRuntime().load(path, Target(), profile_nodes=False)
