from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

from hwnas.errors import SpaceError
from hwnas.trace import count_params, trace

SHAPE = (4, 8, 8)


def module(forward, **children):
    """A module with these children and this forward(self, *inputs)."""
    made = type("Made", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def test_operators_in_order_with_shapes_and_paths():
    net = module(
        lambda self, x: self.last(x),
        last=nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Dropout(0.1), nn.Flatten(), nn.Linear(96, 5)),
    )
    traced = trace(net, [SHAPE])
    assert [(op.kind, op.path) for op in traced.ops] == [
        ("conv", "last.0"),
        ("flatten", "last.2"),
        ("linear", "last.3"),
    ]
    assert [op.output_shape for op in traced.ops] == [(1, 6, 4, 4), (1, 96), (1, 5)]
    # dropout leaves no operator, and what follows reads the convolution
    assert traced.ops[1].inputs == (traced.ops[0].output,)
    assert traced.input_shapes == ((1, *SHAPE),)
    assert traced.macs == 6 * 4 * 4 * 4 * 9 + 96 * 5


@pytest.mark.parametrize(
    ("conv", "macs"),
    [
        (nn.Conv2d(4, 6, 1), 6 * 64 * 4),
        (nn.Conv2d(4, 4, 5, padding=2, groups=4, bias=False), 4 * 64 * 25),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2), 8 * 9 * 2 * 9),
        (nn.Conv2d(4, 2, (1, 3), padding=(0, 1)), 2 * 64 * 4 * 3),
        (nn.Conv2d(4, 2, 3, dilation=2), 2 * 16 * 4 * 9),
    ],
    ids=str,
)
def test_macs_and_shape_of_convolutions(conv, macs):
    traced = trace(nn.Sequential(conv), [SHAPE])
    assert traced.macs == macs
    assert traced.ops[0].output_shape == tuple(conv(torch.zeros(1, *SHAPE)).shape)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.ReLU6(), "relu6"),
        (nn.SiLU(), "silu"),
        (nn.BatchNorm2d(4), "batch_norm"),
        (nn.MaxPool2d(2), "max_pool"),
        (nn.AvgPool2d(3, 1, 1), "avg_pool"),
        (nn.AdaptiveAvgPool2d(1), "global_avg_pool"),
    ],
    ids=lambda value: str(value),
)
def test_layers_without_macs(layer, kind):
    traced = trace(nn.Sequential(layer), [SHAPE])
    assert [(op.kind, op.macs) for op in traced.ops] == [(kind, 0)]
    assert traced.ops[0].output_shape == tuple(layer.eval()(torch.zeros(1, *SHAPE)).shape)


def test_functions_and_several_inputs():
    net = module(lambda self, a, b: torch.cat([torch.add(a, other=b), functional.relu(a * b)], 1))
    traced = trace(net, [SHAPE, SHAPE])
    assert [op.kind for op in traced.ops] == ["add", "mul", "relu", "concat"]
    assert traced.ops[0].inputs == traced.inputs  # an argument given by its name counts
    assert traced.ops[-1].output_shape == (1, 8, 8, 8)


def test_a_module_that_runs_twice_keeps_its_path():
    residual = module(lambda self, x: x + self.act(x), act=nn.ReLU())
    traced = trace(module(lambda self, x: self.layer(self.layer(x)), layer=residual), [SHAPE])
    assert [op.path for op in traced.ops] == ["layer.act", "layer"] * 2
    assert len({op.output for op in traced.ops}) == 4


WRONG = [
    (nn.GELU(), "operator GELU "),
    (nn.ConvTranspose2d(4, 4, 3), "operator ConvTranspose2d "),
    (module(lambda self, x: x.mean(3)), "operator mean "),
    (module(lambda self, x: torch.softmax(x, 1)), "operator softmax "),
    (module(lambda self, x: x - x), "operator sub "),
    (module(lambda self, x: x * 2), r"operator mul \(node mul\) takes tensors only"),
    (module(lambda self, x: torch.add(x, x, alpha=2)), "operator add .* takes tensors only"),
    (module(lambda self, x: torch.cat([x, x])), "operator concat .* takes tensors and 1 only"),
    (module(lambda self, x: torch.cat([x, x], dim=2)), "operator concat .* takes tensors and 1 only"),
    (module(lambda self, x: torch.flatten(x)), "operator flatten .* takes tensors and 1 only"),
    (module(lambda self, x: (x, x)), "not one tensor"),
    (module(lambda self, x: x if x.sum() > 0 else x + x), "depends on values"),
    (module(lambda self, x, y: x + y), "takes 2 inputs, 1 shapes"),
    (module(lambda self, x: torch.cat([x, self.c(x)], 1) + x, c=nn.ReLU()), "does not fit its inputs"),
    (nn.Conv2d(3, 4, 1), "needs 3 channels"),
    (nn.BatchNorm2d(5), "needs 5 channels"),
    (nn.Linear(9, 2), "needs 9 channels"),
    (nn.Conv2d(4, 4, 3, padding="same"), "padding as numbers"),
    (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
    (nn.BatchNorm2d(4, track_running_stats=False), "track_running_stats=False"),
    (nn.AdaptiveAvgPool2d(2), "output_size=2"),
    (nn.MaxPool2d(3, ceil_mode=True), "ceil_mode=True"),
    (nn.MaxPool2d(2, return_indices=True), "return_indices=True"),
    (nn.AvgPool2d(2, divisor_override=3), "divisor_override=3"),
    (nn.Flatten(0), "start_dim=0"),
]


@pytest.mark.parametrize(("layer", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_cannot_be_written_is_an_error(layer, message):
    wrapped = layer if type(layer).__name__ == "Made" else nn.Sequential(layer)
    with pytest.raises(SpaceError, match=message):
        trace(wrapped, [SHAPE])


def test_parameters_are_counted_once():
    conv = nn.Conv2d(4, 4, 1)
    assert count_params(nn.Sequential(conv, nn.BatchNorm2d(4), conv)) == 4 * 4 + 4 + 8


def test_threads_may_trace_at_once() -> None:
    """A farm's devices have their networks written at the same time."""
    depths = range(20, 60, 5)
    layers = [nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1)]  # some are traced, some are called for their shape
    nets = [nn.Sequential(*[nn.Sequential(*layers) for _ in range(depth)]) for depth in depths]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            traces = list(pool.map(lambda net: trace(net, [SHAPE]), nets))
    finally:
        sys.setswitchinterval(interval)
    assert [len(traced.ops) for traced in traces] == [2 * depth for depth in depths]
