from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from sklearn.datasets import load_digits
from test_onnx_graph import CASES, SHAPE, module, trained
from torch import nn
from torch.nn import functional

from hwnas.errors import SpaceError
from hwnas.graphs import onnx_symmetric
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.onnx_int8 import int8_model
from hwnas.graphs.plain import Graph, plain_graph
from hwnas.graphs.ranges import measure_ranges
from hwnas.space import rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace

FLOAT, HALF, BRAIN = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
# Root mean square of the difference, relative to that of the output. Kernels for int8 on processors without VNNI
# saturate sums of two products, so what is bound tightly is the file, computed without them.
OPERATOR = {"fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2}
NETWORK = {"fp16": 1e-2, "bf16": 5e-2, "int8": 5e-2}
KERNELS = 5e-2
SPACES = (
    MobileNetV3Space(
        resolutions=(24,), depths=(1, 2), num_classes=5, stem_width=8, stage_widths=(8, 16), stage_strides=(2, 2),
        se=(False, True), activations=("relu", "hardswish"), head_widths=(32, 48),
    ),
    NasBench201Space(channels=8, cells=1, resolution=16, num_classes=5),
    ResNetSpace(
        resolutions=(33,), base_depths=(1, 1), depths=(0, 1), stage_widths=(32, 64), stage_strides=(1, 2),
        stem_widths=(8, 16), num_classes=5,
    ),
)  # fmt: skip


def ranged(net: nn.Module, images: torch.Tensor, **options) -> Graph:
    shape = tuple(images.shape[1:])
    return plain_graph(net, [shape], batch=len(images), ranges=measure_ranges(net, images, [shape]), **options)


def run(model: onnx.ModelProto, images: torch.Tensor, optimised: bool = True) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return output


def run_openvino(model: onnx.ModelProto, images: torch.Tensor, arithmetic: str = "f32") -> np.ndarray:
    openvino = pytest.importorskip("openvino", reason="bfloat16 is checked with OpenVINO: pip install openvino")
    settings = {"INFERENCE_PRECISION_HINT": arithmetic}
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU", settings)
    (output,) = compiled(images.numpy()).values()
    return np.array(output)


def compute(model: onnx.ModelProto, images: torch.Tensor, precision: str) -> np.ndarray:
    """Exactly what the file says: ONNX Runtime has no bfloat16, and in float32 OpenVINO only rounds the weights."""
    return run_openvino(model, images) if precision == "bf16" else run(model, images, precision != "int8")


def difference(net: nn.Module, images: torch.Tensor, found: np.ndarray) -> float:
    with torch.no_grad():
        expected = net(images).numpy()
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


def optimised_operators(model: onnx.ModelProto, tmp_path) -> list[str]:
    """What ONNX Runtime makes of a model, without changes of memory layout."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    return [name.replace("Nhwc", "") for name in found if name != "Transpose"]


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == FLOAT
    return model


@pytest.mark.parametrize("precision", OPERATOR)
@pytest.mark.parametrize("net", [net for net, _ in CASES.values()], ids=CASES)
def test_operators_compute_what_the_module_computes(net, precision):
    torch.manual_seed(0)
    trained(net)
    images = torch.randn(2, *SHAPE)
    graph = ranged(net, images)
    model = checked(onnx_model(graph, precision))
    assert difference(net, images, compute(model, images, precision)) < OPERATOR[precision]
    if precision == "int8":
        assert difference(net, images, run(model, images)) < KERNELS
        for rest in ("fp32", "fp16"):
            symmetric = checked(int8_model(graph, symmetric=True, rest=rest))
            assert difference(net, images, run(symmetric, images, optimised=False)) < OPERATOR["int8"]


@cache
def random_network(space_number: int, number: int) -> tuple[nn.Module, torch.Tensor, Graph]:
    space = SPACES[space_number]
    torch.manual_seed(number)
    arch = rows_of(space.sample(4, np.random.default_rng(1)))[number]
    net = trained(space.build(arch))
    images = torch.randn(8, *space.input_shape(arch))
    return net, images, ranged(net, images, positions=space.positions)


@pytest.mark.parametrize("precision", NETWORK)
@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("space", range(3), ids=[space.name for space in SPACES])
def test_random_networks(space, number, precision):
    net, images, graph = random_network(space, number)
    model = checked(onnx_model(graph, precision))
    assert difference(net, images, compute(model, images, precision)) < NETWORK[precision]


def test_the_bounds_can_be_missed():
    """Ranges of half the size clip, ranges of ten times the size are coarse: both are seen."""
    net, images, graph = random_network(0, 0)
    for factor in (0.4, 20):
        ranges = {name: (low * factor, high * factor) for name, (low, high) in graph.ranges.items()}
        wrong = Graph(graph.nodes, graph.inputs, graph.output, graph.shapes, ranges)
        assert difference(net, images, run(onnx_model(wrong, "int8"), images, optimised=False)) > NETWORK["int8"]


def test_a_trained_network_keeps_its_accuracy():
    torch.manual_seed(0)
    digits = load_digits()
    images = functional.interpolate(torch.tensor(digits.images[:, None], dtype=torch.float32) / 8 - 1, scale_factor=2)
    labels = torch.tensor(digits.target)
    space = MobileNetV3Space(
        resolutions=(16,), depths=(2,), num_classes=10, in_channels=1, stem_width=16, stage_widths=(16, 24),
        stage_strides=(2, 2), se=(False, True), activations=("relu", "hardswish"), head_widths=(48, 64),
    )  # fmt: skip
    net = space.build(space.check((0,) * len(space.slots)))
    optimiser = torch.optim.AdamW(net.parameters(), lr=5e-3)
    for step in range(120):
        chosen = torch.arange(64 * step, 64 * (step + 1)) % 1200
        optimiser.zero_grad()
        functional.cross_entropy(net(images[chosen]), labels[chosen]).backward()
        optimiser.step()
    net.eval()
    held_out, truth = images[1300:], labels[1300:].numpy()
    ranges = measure_ranges(net, images[:200], [tuple(images.shape[1:])])
    graph = plain_graph(net, [tuple(images.shape[1:])], batch=len(held_out), ranges=ranges)
    accuracy = {
        precision: float((run(onnx_model(graph, precision), held_out).argmax(1) == truth).mean())
        for precision in ("fp32", "fp16", "int8")
    }
    assert accuracy["fp32"] > 0.85
    assert accuracy["fp16"] > accuracy["fp32"] - 0.005
    assert accuracy["int8"] > accuracy["fp32"] - 0.02


@pytest.mark.parametrize(("precision", "kind", "opset"), [("fp16", HALF, 18), ("bf16", BRAIN, 22)])
def test_everything_inside_is_of_the_precision(precision, kind, opset):
    *_, graph = random_network(0, 1)
    model = onnx.shape_inference.infer_shapes(onnx_model(graph, precision), strict_mode=True)
    assert model.opset_import[0].version == opset
    operators = [node.op_type for node in model.graph.node]
    assert Counter(operators)["Cast"] == 2
    assert operators[0] == operators[-1] == "Cast"
    assert {tensor.data_type for tensor in model.graph.initializer} == {kind, TensorProto.INT64}
    assert {value.type.tensor_type.elem_type for value in model.graph.value_info} == {kind}
    plain = onnx_model(graph)
    inside = [node for node in model.graph.node if node.op_type != "Cast"]
    assert [(node.op_type, node.name) for node in inside] == [(node.op_type, node.name) for node in plain.graph.node]


def test_no_two_layers_of_a_graph_for_profiling_are_equal():
    """OpenVINO computes equal ones of one tensor once, and the network would be too fast."""
    space = NasBench201Space(cells=1)
    with torch.device("meta"):
        net = space.build(space.check((3,) * 6))
    graph = plain_graph(net, [(3, 32, 32)], positions=space.positions)
    weights = [node.weights["weight"].tobytes() for node in graph.nodes if node.kind == "conv"]
    assert len(set(weights)) == len(weights) > 18
    again = plain_graph(net, [(3, 32, 32)], positions=space.positions)
    assert [node.weights["weight"].tobytes() for node in again.nodes if node.kind == "conv"] == weights


def test_bfloat16_is_rounded_to_the_nearest():
    values = [1.0, 1.00390625, 1.01171875, -3.3, 1e-40, 3e38, 65504.0]
    net = nn.Sequential(nn.Conv2d(len(values), 1, 1, bias=False))
    net[0].weight.data = torch.tensor(values)[None, :, None, None]
    (tensor,) = onnx_model(plain_graph(net, [(len(values), 1, 1)]), "bf16").graph.initializer
    bits = np.frombuffer(tensor.raw_data, np.int16)
    assert bits.tolist() == torch.tensor(values).bfloat16().view(torch.int16).tolist()


def test_weights_beyond_a_precision_are_refused():
    net = nn.Sequential(nn.Conv2d(4, 2, 1))
    net[0].weight.data[0, 0] = 1e5
    graph = plain_graph(net, [SHAPE])
    with pytest.raises(SpaceError, match=r"0\.weight goes up to 100000\.0, and fp16 only to 65504"):
        onnx_model(graph, "fp16")
    onnx_model(graph, "bf16")


@pytest.mark.parametrize(("precision", "message"), [("int4", "no ONNX form of precision 'int4'"), ("", "known: fp32")])
def test_unknown_precisions_are_refused(precision, message):
    with pytest.raises(SpaceError, match=message):
        onnx_model(plain_graph(nn.Sequential(nn.ReLU()), [SHAPE]), precision)
    for symmetric, rest in ((False, "fp16"), (True, "bf16")):
        with pytest.raises(SpaceError, match=f"got '{rest}'"):
            int8_model(plain_graph(nn.Sequential(nn.ReLU()), [SHAPE]), symmetric=symmetric, rest=rest)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_any_batch(precision):
    net, images, graph = random_network(0, 2)
    model = checked(onnx_model(graph, precision, dynamic_batch=True))
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 5):
        found = run(model, images[:batch], precision != "int8")
        assert difference(net, images[:batch], found) < {"fp32": 1e-5, **NETWORK}[precision]
    with pytest.raises(Exception, match="invalid dimensions"):
        run(onnx_model(graph, precision), images[:1])


CONV, NORM = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
FUSED = {
    "conv": (nn.Sequential(CONV), ["QLinearConv"]),
    "conv-relu": (nn.Sequential(CONV, nn.ReLU()), ["QLinearConv"]),
    "conv-relu6": (nn.Sequential(CONV, nn.ReLU6()), ["QLinearConv"]),
    "conv-relu-conv": (nn.Sequential(CONV, nn.ReLU(), CONV), ["QLinearConv", "QLinearConv"]),
    "add": (module(lambda self, x: self.a(x) + x, a=CONV), ["QLinearConv", "QLinearAdd"]),
    "add-relu": (module(lambda self, x: self.r(self.a(x) + x), a=CONV, r=nn.ReLU()), ["QLinearConv", "QLinearAdd"]),
    "gate": (
        module(lambda self, x: x * self.b(self.a(x)), a=nn.AdaptiveAvgPool2d(1), b=nn.Conv2d(4, 4, 1)),
        ["QLinearGlobalAveragePool", "QLinearConv", "QLinearMul"],
    ),
    "concat": (module(lambda self, x: torch.cat([self.a(x), x], 1), a=CONV), ["QLinearConv", "QLinearConcat"]),
    "max-pool": (nn.Sequential(CONV, nn.MaxPool2d(2)), ["QLinearConv", "MaxPool"]),
    "head": (
        nn.Sequential(CONV, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        ["QLinearConv", "QLinearGlobalAveragePool", "Reshape", "QGemm"],
    ),
}


@pytest.mark.parametrize(("net", "kernels"), FUSED.values(), ids=FUSED)
def test_onnx_runtime_computes_in_int8(net, kernels, tmp_path):
    graph = ranged(net, torch.randn(1, *SHAPE))
    found = optimised_operators(onnx_model(graph, "int8"), tmp_path)
    head = net[-1] if isinstance(net, nn.Sequential) else None
    after = [] if isinstance(head, nn.Linear) else ["DequantizeLinear"]  # the last layer gives floats
    assert found == ["QuantizeLinear", *kernels, *after]


POOL = nn.AvgPool2d(3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize("clamp", [nn.ReLU(), nn.ReLU6(), nn.Identity()], ids=["relu", "relu6", "none"])
def test_average_pools_compute_in_float(clamp, tmp_path):
    """ONNX Runtime's int8 kernel for them is many times slower than the float one; all else stays in int8."""
    net = module(
        lambda self, x: self.last(self.clamp(self.pool(self.conv(x)))) + self.pool(x), conv=CONV, pool=POOL,
        clamp=clamp, last=nn.Conv2d(4, 4, 1),
    )  # fmt: skip
    found = Counter(optimised_operators(onnx_model(ranged(net, torch.randn(1, *SHAPE)), "int8"), tmp_path))
    assert (found["AveragePool"], found["QLinearConv"], found["QLinearAdd"]) == (2, 2, 1)
    assert not {"QLinearAveragePool", "Conv", "Add"} & set(found)
    symmetric = int8_model(ranged(net, torch.randn(1, *SHAPE)), symmetric=True)
    assert "Max" not in {node.op_type for node in symmetric.graph.node}


def test_a_channel_of_zeros_keeps_its_bias():
    net = nn.Sequential(nn.Conv2d(4, 3, 1))
    net[0].weight.data[0] = 0
    net[0].weight.data[1] *= 1e-12
    net[0].bias.data = torch.tensor([0.5, -0.25, 0.0])
    images = torch.randn(2, *SHAPE)
    graph = ranged(net, images)
    for model in (onnx_model(graph, "int8"), int8_model(graph, symmetric=True, rest="fp16")):
        assert difference(net, images, run(checked(model), images, optimised=False)) < OPERATOR["int8"]


def test_a_tensor_of_zeros():
    net = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1))
    images = -torch.rand(1, *SHAPE)
    for symmetric in (False, True):
        found = run(checked(int8_model(ranged(net, images), symmetric=symmetric)), images)
        assert difference(net, images, found) < OPERATOR["int8"]


def test_the_symmetric_form(tmp_path):
    """What TensorRT takes: zero points of 0, weights behind a pair, none between a convolution and its activation."""
    *_, graph = random_network(0, 3)
    onnx_symmetric.write(graph, tmp_path / "int8.onnx", "int8")
    model = onnx.shape_inference.infer_shapes(checked(onnx.load(tmp_path / "int8.onnx")), strict_mode=True)
    assert model.opset_import[0].version == 19
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    readers = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = tensors[node.input[1]], tensors[node.input[2]]
            assert (scale.dtype, zero.dtype) == (np.float16, np.int8)
            assert not zero.any()
            assert (scale > 0).all()
        if node.op_type in ("Conv", "Gemm"):
            for name in node.input[:2]:
                assert makers[name].op_type == "DequantizeLinear"
                assert makers[makers[name].input[0]].op_type == "QuantizeLinear"
            assert all(tensors[name].dtype == np.float16 for name in node.input[2:])
        if node.op_type == "Relu":
            assert makers[node.input[0]].op_type == "Conv"
            assert readers[node.output[0]].op_type in ("QuantizeLinear", "ReduceMean", "GlobalAveragePool", "Mul")
    onnx_symmetric.write(graph, tmp_path / "fp16.onnx", "fp16")
    assert onnx.load(tmp_path / "fp16.onnx") == onnx_model(graph, "fp16")
