from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from hwnas.errors import SpaceError
from hwnas.export.onnx import export_onnx
from hwnas.graphs import write_arch
from hwnas.graphs.onnx import onnx_model as graph_model
from hwnas.graphs.plain import block_index, plain_graph
from hwnas.space import Position
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.target import Target

SHAPE = (4, 9, 9)


def onnx_model(net: nn.Module, shapes, **options) -> onnx.ModelProto:
    return graph_model(plain_graph(net, shapes, **options))


def module(forward, **children):
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def trained(net: nn.Module) -> nn.Module:
    """In evaluation, with weights of the test's own seed and statistics of batch normalisation that do something."""
    for layer in net.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.running_mean)
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 2)
                nn.init.normal_(layer.bias)
    return net.eval()


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def difference(net: nn.Module, batch: int = 2, inputs: int = 1) -> float:
    """Largest difference between a module and its graph in ONNX Runtime, as a part of the largest output."""
    images = [torch.randn(batch, *SHAPE) for _ in range(inputs)]
    model = onnx_model(net, [SHAPE] * inputs, batch=batch)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    (written,) = session.run(None, dict(zip(names, (image.numpy() for image in images), strict=True)))
    with torch.no_grad():
        expected = net(*images).numpy()
    assert written.shape == expected.shape
    return float(np.abs(written - expected).max() / np.abs(expected).max())


CASES = {
    "conv": (nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1)), ["Conv"]),
    "conv-dilated-grouped": (nn.Sequential(nn.Conv2d(4, 8, (3, 5), padding=(1, 2), dilation=2, groups=2)), ["Conv"]),
    "conv-bias-bn": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), ["Conv"]),
    "conv-bn": (nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), ["Conv"]),
    "conv-bn-not-affine": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), ["Conv"]),
    "bn": (nn.Sequential(nn.BatchNorm2d(4)), ["BatchNormalization"]),
    "bn-not-affine": (nn.Sequential(nn.BatchNorm2d(4, affine=False)), ["BatchNormalization"]),
    "bn-twice": (
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)),
        ["Conv", "BatchNormalization"],
    ),
    "bn-after-relu": (
        nn.Sequential(nn.Conv2d(4, 6, 1), nn.ReLU(), nn.BatchNorm2d(6)),
        ["Conv", "Relu", "BatchNormalization"],
    ),
    "conv-used-twice": (
        module(lambda self, x: _conv_and_norm(self, x), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)),
        ["Conv", "BatchNormalization", "Add"],
    ),
    "two-norms": (
        module(
            lambda self, x: _two_norms(self, x),
            conv=nn.Conv2d(4, 4, 1),
            first=nn.BatchNorm2d(4),
            second=nn.BatchNorm2d(4),
        ),
        ["Conv", "BatchNormalization", "BatchNormalization", "Mul"],
    ),
    "relu6": (nn.Sequential(nn.ReLU6()), ["Clip"]),
    "silu": (nn.Sequential(nn.SiLU()), ["Sigmoid", "Mul"]),
    "hardswish": (nn.Sequential(nn.Hardswish()), ["HardSwish"]),
    "hardsigmoid": (nn.Sequential(nn.Hardsigmoid()), ["HardSigmoid"]),
    "sigmoid": (nn.Sequential(nn.Sigmoid()), ["Sigmoid"]),
    "identity-between": (nn.Sequential(nn.ReLU(), nn.Identity(), nn.Dropout(0.5), nn.Sigmoid()), ["Relu", "Sigmoid"]),
    "identity-last": (nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2), nn.Identity()), ["Conv"]),
    "concat": (module(lambda self, x: torch.cat([self.a(x), x, x], dim=1), a=nn.ReLU()), ["Relu", "Concat"]),
    "max-pool": (nn.Sequential(nn.MaxPool2d(3, stride=2, padding=1)), ["MaxPool"]),
    "avg-pool": (nn.Sequential(nn.AvgPool2d((3, 2), stride=1, padding=(1, 0))), ["AveragePool"]),
    "avg-pool-inside": (nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False)), ["AveragePool"]),
    "head": (
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False)),
        ["ReduceMean", "Reshape", "Gemm"],
    ),
    "shared": (
        module(lambda self, x: self.layer(self.layer(x)), layer=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))),
        ["Conv", "Conv"],
    ),
}


def _conv_and_norm(self, x):
    y = self.conv(x)
    return y + self.bn(y)


def _two_norms(self, x):
    y = self.conv(x)
    return self.first(y) * self.second(y)


@pytest.mark.parametrize(("net", "expected"), CASES.values(), ids=CASES)
def test_graph_computes_what_the_module_computes(net, expected):
    torch.manual_seed(0)
    trained(net)
    assert operators(onnx_model(net, [SHAPE])) == expected
    for batch in (1, 2):
        assert difference(net, batch) < 1e-5


def test_several_inputs():
    assert difference(module(lambda self, a, b, c: a * b + c), inputs=3) < 1e-6


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Identity()), "computes nothing"),
        (nn.Sequential(nn.Linear(9, 3)), "flatten before the linear layer"),
        (nn.Sequential(nn.GELU()), "operator GELU"),
    ],
)
def test_what_cannot_be_written(net, message):
    with pytest.raises(SpaceError, match=message):
        onnx_model(net, [SHAPE])


def test_the_graph_is_the_one_the_exporter_writes():
    """Same operators in the same order, on the same shapes of weights."""
    torch.manual_seed(0)
    space = MobileNetV3Space(resolutions=(32,), depths=(2,), num_classes=5, stage_widths=(16, 24), stage_strides=(2, 1),
                             se=(True, False), activations=("relu", "hardswish"), head_widths=(32, 48))  # fmt: skip
    net = trained(space.build(tuple(space.sample(1, np.random.default_rng(2))[0])))
    written, exported = onnx_model(net, [(3, 32, 32)]), export_onnx(net, (3, 32, 32))
    # with a dynamic batch the exporter reads the batch size for the Reshape that flattens
    bookkeeping = {"Shape", "Gather", "Unsqueeze", "Concat", "Constant", "Cast", "Squeeze"}
    assert operators(written) == [name for name in operators(exported) if name not in bookkeeping]
    assert kernels(written) == kernels(exported)


def kernels(model: onnx.ModelProto) -> Counter[tuple[int, ...]]:
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return Counter(
        shapes[node.input[1]] if node.op_type == "Conv" else tuple(sorted(shapes[node.input[1]]))
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm")
    )


def test_nodes_are_tagged_by_position(tmp_path):
    space = MobileNetV3Space(resolutions=(16,), depths=(1, 2), num_classes=3)
    arch = space.check([0] * len(space.slots))
    model = onnx.load(write_arch(space, arch, Target(batch=4), tmp_path / "net"))
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 4
    found = [block_index(node.name) for node in model.graph.node]
    assert found == sorted(found)
    placed = {space.positions.index(position) for position, _ in space.placed_blocks(arch)}
    assert set(found) == placed != set(range(len(space.positions)))
    # weights of a graph for profiling are of a usual size, none denormal or infinite
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {model.graph.input[0].name: np.ones((4, 3, 16, 16), np.float32)})
    assert np.isfinite(logits).all()
    assert 1e-6 < np.abs(logits).max() < 1e6
    for tensor in model.graph.initializer:
        assert np.isfinite(numpy_helper.to_array(tensor)).all()


def test_meta_modules_with_norms_that_are_not_affine():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, affine=False))
    onnx.checker.check_model(onnx_model(net, [SHAPE]), full_check=True)


def test_work_outside_of_positions_is_an_error():
    net = nn.Sequential(nn.ReLU(), nn.Sigmoid())
    with pytest.raises(SpaceError, match="1 computes something outside"):
        onnx_model(net, [SHAPE], positions=[Position("0", ())])
    with pytest.raises(SpaceError, match="the network itself computes something outside"):
        onnx_model(module(lambda self, x: x + x), [SHAPE], positions=[Position("0", ())])
    tagged = onnx_model(net, [SHAPE], positions=[Position("1", ()), Position("0", ())])
    assert [block_index(node.name) for node in tagged.graph.node] == [1, 0]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("b0:stem_conv", 0),
        ("b12:layers_3_kernel_time", 12),
        ("fused b7:conv + b8:add", 7),
        ("reorder_b7", None),
        ("ab7:conv", None),
        ("b7conv", None),
        ("", None),
    ],
)
def test_block_of_a_kernel(name, index):
    assert block_index(name) == index
