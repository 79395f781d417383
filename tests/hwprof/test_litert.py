from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("ai_edge_litert", reason="LiteRT is not installed: pip install hwnas[litert]")

import ai_edge_litert

from hwnas.graphs.plain import block_index, plain_graph
from hwnas.graphs.tflite import tflite_model
from hwnas.graphs.tflite_file import ModelFile
from hwnas.space import Position
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes import litert_nodes
from hwprof.runtimes.litert import LiteRtRuntime
from hwprof.runtimes.litert_kernels import Operator, attributed
from hwprof.target import Plan, Target

PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=4, visit_ms=1.0, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
TARGET = Target(runtime="litert")
SHAPE = (4, 12, 10)
POSITIONS = [Position(str(number), ()) for number in range(8)]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.Hardswish(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3), nn.Sigmoid(),
    ).eval()  # fmt: skip


def write_model(path: Path, net: nn.Module | None = None, batch: int = 1, precision: str = "fp32", shape=SHAPE) -> Path:
    graph = plain_graph(net or network(), [shape], positions=POSITIONS, batch=batch)
    path.write_bytes(tflite_model(graph, precision))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "tiny.tflite")


def load(path: Path, target: Target = TARGET, nodes: bool = False):
    return LiteRtRuntime().load(path, target, profile_nodes=nodes)


@pytest.fixture(scope="module")
def client() -> Iterator[AgentClient]:
    with AgentClient(make_device("local"), TARGET) as client:
        yield client


def test_a_group_is_measured_and_outputs_come_back(client: AgentClient, model: Path, tmp_path: Path) -> None:
    assert client.fingerprint["litert"] == ai_edge_litert.__version__
    slow = write_model(tmp_path / "slow.tflite", shape=(4, 128, 128))
    group = client.measure({"same": model, "slow": slow}, {"anchor": model}, PLAN, nodes=True)
    same, large = group.results
    assert large.ratio > 1.5 * same.ratio > 0
    assert large.nodes is not None
    assert {block_index(name) for name, _ in large.nodes} >= {0, 1, 2, 4, 6, 7}
    assert 0.3 * large.ratio < sum(ratio for _, ratio in large.nodes) < 1.5 * large.ratio
    images = torch.randn(1, *SHAPE)
    np.save(tmp_path / "images.npy", images.numpy())
    (output,) = client.infer(model, [tmp_path / "images.npy"])
    assert output.shape == (1, 3)
    with torch.no_grad():
        expected = network()(images).numpy().ravel()
    assert np.frombuffer(output.data, "<f4") == pytest.approx(expected, rel=1e-4)


def test_damaged_files_are_errors_and_the_agent_lives_on(client: AgentClient, model: Path, tmp_path: Path) -> None:
    data = model.read_bytes()
    process = client._process
    for name, content in {"empty": b"", "garbage": b"\0TFL3" * 50, "half": data[: len(data) // 2]}.items():
        (tmp_path / f"{name}.tflite").write_bytes(content)
        with pytest.raises(MeasurementError, match=f"litert cannot load {name}.tflite: .*[a-z]"):
            client.measure({"bad": tmp_path / f"{name}.tflite"}, {"anchor": model}, PLAN)
    assert client.measure({"good": model}, {"anchor": model}, PLAN).results[0].ratio > 0
    assert client._process is process


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"litert cannot load gone\.tflite"):
        load(tmp_path / "gone.tflite")


def test_inputs_must_be_of_the_targets_batch(model: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="input input_1 has batch 1, the target has batch 8"):
        load(model, Target(runtime="litert", batch=8))
    dynamic = dynamic_model(tmp_path / "dynamic.tflite", (-1, 6))
    loaded = load(dynamic, Target(runtime="litert", batch=5))
    loaded.run()
    (output,) = loaded.infer([np.full((5, 6), -2, np.float32)])
    assert output.tolist() == np.zeros((5, 6)).tolist()
    with pytest.raises(MeasurementError, match="nodes are profiled of files with fixed shapes only"):
        load(dynamic, Target(runtime="litert", batch=5), nodes=True)
    with pytest.raises(MeasurementError, match=r"input x of shape \[1, -1\], type float32: .* only the batch"):
        load(dynamic_model(tmp_path / "wide.tflite", (1, -1)))


def dynamic_model(path: Path, signature: tuple[int, ...], dtype: str = "float32") -> Path:
    """A ReLU of an input with axes that are -1: of any size."""
    file = ModelFile()
    shape = tuple(max(extent, 1) for extent in signature)
    source = file.tensor("x", shape, dtype)
    file._tensors[0].shapeSignature = [*signature]
    path.write_bytes(file.content([source], file.operator("RELU", [source], file.tensor("y", shape, dtype))))
    return path


def test_inputs_that_are_not_float_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="type int8: inputs must be float32"):
        load(dynamic_model(tmp_path / "int8.tflite", (1, 6), "int8"))


def test_images_are_turned_to_the_layout_of_the_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((2, 4, 12, 10)).astype(np.float32)
    target = Target(runtime="litert", batch=2)
    net = nn.Sequential(nn.Conv2d(4, 3, 1)).eval()
    (output,) = load(write_model(tmp_path / "last.tflite", net, batch=2), target).infer([images])
    with torch.no_grad():
        assert output == pytest.approx(net(torch.from_numpy(images)).numpy(), rel=1e-4, abs=1e-5)
    # a file whose images have their channels first, as other tools write them, gets them so
    (output,) = load(dynamic_model(tmp_path / "first.tflite", (2, 4, 12, 10)), target).infer([images])
    assert np.array_equal(output, images.clip(0))
    for wrong in ([images[:1]], [images, images], [], [images[:, :3]]):
        with pytest.raises(
            MeasurementError, match=r"first.tflite takes (1 inputs, got|an input of the shape \(2, 4, 12)"
        ):
            load(tmp_path / "first.tflite", target).infer(wrong)


def test_what_is_inferred_does_not_change_what_is_timed_and_stays(model: Path) -> None:
    loaded = load(model)
    images = [np.ones((1, *SHAPE), np.float32)]
    (first,) = loaded.infer(images)
    kept = first.copy()
    loaded.run()
    loaded.infer([0 * images[0]])
    assert np.array_equal(first, kept)  # a copy, not a view of the interpreter's memory
    assert np.array_equal(loaded.infer(images)[0], kept)


@pytest.mark.parametrize("nodes", [False, True])
def test_close_frees_the_model(model: Path, nodes: bool) -> None:
    loaded = load(model, nodes=nodes)
    loaded.run()
    interpreter = weakref.ref(loaded._interpreter)
    gc.collect()
    gc.disable()
    try:
        loaded.close()
        assert interpreter() is None
    finally:
        gc.enable()


def test_the_delegate_is_used_and_can_be_left_out(model: Path) -> None:
    for level, delegates in (("all", 1), ("basic", 0)):
        loaded = load(model, Target(runtime="litert", optimisation=level))
        assert [op["op_name"] for op in loaded._interpreter._get_ops_details()].count("DELEGATE") == delegates
    with pytest.raises(TargetError, match="no optimisation level 'extended'; it has all, basic"):
        load(model, Target(runtime="litert", optimisation="extended"))


def test_the_clock_counts_cpu_time_of_one_thread_only() -> None:
    assert LiteRtRuntime().clock(TARGET).cpu is not None
    assert LiteRtRuntime().clock(Target(runtime="litert", threads=2)).cpu is None
    assert LiteRtRuntime().versions() == {"litert": ai_edge_litert.__version__, "delegate": "XNNPACK"}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("optimisation", ["all", "basic"])
def test_times_of_kernels_are_given_back_to_the_tensors(tmp_path: Path, precision: str, optimisation: str) -> None:
    path = write_model(tmp_path / "net.tflite", precision=precision, shape=(4, 48, 48))
    loaded = load(path, Target(runtime="litert", optimisation=optimisation), nodes=True)
    for _ in range(5):
        loaded.run()
    profile = loaded.close()
    assert profile is not None
    assert len(profile.us) == 5
    assert {len(times) for times in profile.us} == {len(profile.names)}
    assert min(min(times) for times in profile.us) >= 0.5
    owners = {name: block_index(name) for name in profile.names}
    # Kernels of convolutions and linear layers, in the blocks where these are
    heavy = [owner for name, owner in owners.items() if re.search(r"Convol|Fully|CONV_2D|FULLY", name)]
    assert heavy == [0, 2, 6]
    assert [owner for name, owner in owners.items() if re.search("Mean|MEAN", name)] == [4]
    assert {owner for owner in owners.values() if owner is not None} >= {0, 1, 2, 4, 6, 7}


class Join(nn.Module):
    def forward(self, x, y):
        return torch.cat([x, y], dim=1)


class Pieces(nn.Module):
    """Two branches, each with a pool whose padding XNNPACK has no kernel for; layers are named by their position."""

    def __init__(self) -> None:
        super().__init__()
        layers = [*(nn.Conv2d(4, 4, 1) for _ in range(3)), nn.MaxPool2d(4, 2, 1), nn.Conv2d(4, 4, 3), Join()]
        for number, layer in enumerate(layers):
            self.add_module(str(number), layer)

    def forward(self, x):
        layers = self._modules
        first, second = layers["0"](x), layers["2"](layers["1"](x))
        return layers["5"](*(layers["4"](layers["3"](branch)) for branch in (first, second)))


def test_networks_that_are_delegated_in_pieces(tmp_path: Path) -> None:
    loaded = load(write_model(tmp_path / "pieces.tflite", Pieces().eval(), shape=(4, 11, 9)), nodes=True)
    loaded.run()
    profile = loaded.close()
    assert profile is not None
    found = [(block_index(name), name.split(" ", 1)[1].split(" (")[0]) for name in profile.names]
    convolutions = [owner for owner, kind in found if kind in ("Convolution", "Fully Connected")]
    assert sorted(convolutions) == [0, 1, 2, 4, 4]
    assert [owner for owner, kind in found if kind in ("PADV2", "Max Pooling")] == [3] * 4
    assert [owner for owner, kind in found if kind in ("Concatenate", "Copy")] == [5]


def test_a_profile_without_a_run_is_an_error(model: Path) -> None:
    with pytest.raises(MeasurementError, match="the profiler saw no run"):
        load(model, nodes=True).close()


def test_an_old_library_is_not_called(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ai_edge_litert, "__version__", "2.1.6")
    with pytest.raises(MeasurementError, match=r"2.1.6 is installed: node times need ai-edge-litert 2.2"):
        load(model, nodes=True)
    load(model).run()


def test_events_of_another_layout_are_not_read(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = litert_nodes._EVENT.descr
    monkeypatch.setattr(litert_nodes, "_EVENT", np.dtype([*fields[:1], ("more", "u8"), *fields[1:]]))
    loaded = load(model, nodes=True)
    loaded.run()
    loaded.run()
    with pytest.raises(MeasurementError, match="laid out in another way"):
        loaded.close()


def operators(*kinds: str) -> list[Operator]:
    return [Operator(number, kind, f"{kind}{number}") for number, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("kinds", "kernels", "owners"),
    [
        (["CONV_2D", "ADD"], ["Convolution (NHWC, F32) IGEMM", "Add (ND)"], [0, 1]),
        # padding fused into the convolution, an activation that no kernel took in, a shape put right
        (["PAD", "CONV_2D", "ADD", "MUL"], ["Convolution", "Add (ND)", "Clamp (NC)", "Multiply (ND)"], [1, 2, 2, 3]),
        (["MEAN", "RESHAPE", "FULLY_CONNECTED"], ["Mean (ND)", "Static Reshape", "Static Reshape", "Fully"], None),
        (["MEAN", "FULLY_CONNECTED"], ["Mean (ND)", "Static Reshape", "Fully Connected (NC)"], [0, 0, 1]),
        # a chain of int8 operators looked up in one table
        (
            ["CONV_2D", "DEQUANTIZE", "HARD_SWISH", "QUANTIZE", "CONV_2D"],
            ["Convolution", "Invalid Unary Op", "Fully Connected"],
            [0, 1, 4],
        ),
        (["CONV_2D", "CONCATENATION", "RESHAPE"], ["Convolution", "Copy (NC, X32)", "Copy (NC, X32)"], [0, 1, 2]),
        (["QUANTIZE", "CONV_2D"], ["Convert (NC)", "Convolution"], [0, 1]),
        (["CONV_2D", "DEPTHWISE_CONV_2D"], ["Convert (NC, F32, F16)", "Convolution", "Convolution"], [0, 0, 1]),
        (["CONV_2D", "CONV_2D"], ["Convolution"], None),
        (["RELU"], ["Convolution"], None),
        (["CONV_2D"], [], None),
    ],
)
def test_kernels_are_paired_with_operators(kinds: list[str], kernels: list[str], owners: list[int] | None) -> None:
    if owners is None:
        with pytest.raises(MeasurementError, match="convolutions and linear layers, the file has"):
            attributed(kernels, operators(*kinds))
    else:
        assert [owner.number for owner in attributed(kernels, operators(*kinds))] == owners
