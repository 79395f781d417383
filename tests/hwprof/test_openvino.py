"""The runtime openvino: what it computes, refuses and counts."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from agents import ScriptDevice, write_model
from onnx import TensorProto, helper

from hwnas.graphs import write_arch
from hwnas.graphs.plain import block_index
from hwnas.latency.rows import position_times
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.space import rows_of
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.client import AgentClient
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError, MeasurementError, TargetError
from hwprof.target import Plan, Target

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
from hwprof.runtimes.openvino import OpenVino, OpenVinoModel, _Counters

TARGET = Target(runtime="openvino")
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=9.0, max_spread=9.0, max_drift=9.0)


def load(path: Path, target: Target = TARGET, nodes: bool = False) -> OpenVinoModel:
    return OpenVino().load(path, target, profile_nodes=nodes)


def write_graph(path: Path, nodes, inputs, weights=(), outputs=("y",)) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        list(weights),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


def write_relu(path: Path, shape, kind: int = TensorProto.FLOAT, operator: str = "Relu") -> Path:
    return write_graph(path, [helper.make_node(operator, ["x"], ["y"], name="b0:relu")], [("x", kind, shape)])


def capabilities(*names: str) -> SimpleNamespace:
    return SimpleNamespace(get_property=lambda device, name: list(names))


def test_several_inputs_in_their_order(tmp_path):
    nodes = [helper.make_node("Sub", ["a", "b"], ["y"]), helper.make_node("Mul", ["a", "b"], ["z"])]
    inputs = [("a", TensorProto.FLOAT, (1, 2, 3)), ("b", TensorProto.FLOAT16, (1, 1, 3))]
    nodes.insert(0, helper.make_node("Cast", ["b16"], ["b"], to=TensorProto.FLOAT))
    path = write_graph(tmp_path / "m.onnx", nodes, [inputs[0], ("b16", *inputs[1][1:])], outputs=("y", "z"))
    model = load(path)
    model.run()
    a, b = np.arange(6, dtype=np.float32).reshape(1, 2, 3), np.array([[[2, 0.5, -1]]], np.float32)
    for _ in range(2):
        difference, product = model.infer([a, b])
        assert difference.dtype == product.dtype == np.float32
        np.testing.assert_allclose(difference, a - b)
        np.testing.assert_allclose(product, a * b)
        a = a + 1
    for wrong in ([a], [b, a], [a, b, a], [a[:, :1], b]):
        with pytest.raises(MeasurementError, match=r"takes inputs of the shapes \[\(1, 2, 3\), \(1, 1, 3\)\], got"):
            model.infer(wrong)
    assert model.close() is None


@pytest.mark.parametrize("batch", [1, 3])
def test_a_dynamic_batch_is_the_targets(tmp_path, batch):
    model = load(write_model(tmp_path / "m.onnx", ("batch", 4, 12, 12)), Target(runtime="openvino", batch=batch))
    (output,) = model.infer([np.ones((batch, 4, 12, 12), np.float32)])
    assert output.shape == (batch, 4, 10, 10)


def test_fp32_is_computed_in_fp32(tmp_path):
    """Unasked, OpenVINO takes bfloat16 where the processor has it."""
    runtime = OpenVino()
    images = np.random.default_rng(0).standard_normal((1, 16, 8, 8)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((16, 16, 1, 1)).astype(np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["y"])
    path = write_graph(
        tmp_path / "m.onnx", [conv], [("x", TensorProto.FLOAT, images.shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    expected = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], images, dtype=np.float64)

    def error(precision: str) -> float:
        model = runtime.load(path, Target(precision=precision), profile_nodes=False)
        return float(np.abs(model.infer([images])[0] - expected).max() / np.abs(expected).max())

    assert error("fp32") < 1e-6
    assert error("int8") < 1e-6
    if "BF16" in runtime.versions()["openvino_cpu"]:
        assert 1e-4 < error("bf16") < 2e-2


def test_a_precision_that_the_processor_lacks_is_refused(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    runtime = OpenVino()
    runtime._core = capabilities("FP32", "BIN", "INT8")
    for precision in ("fp16", "bf16"):
        target = Target(runtime="openvino", precision=precision)
        for refused in (lambda: runtime.clock(target), lambda: runtime.load(path, target, profile_nodes=False)):  # noqa: B023
            with pytest.raises(DeviceError, match=f"in {precision} on this processor.*BIN FP32 INT8.*of fp32, int8"):
                refused()
    runtime.clock(TARGET)
    script = """
        from hwprof import agent
        from hwprof.runtimes import openvino
        openvino.OpenVino._capabilities = property(lambda self: ["FP32"])
        agent.main()
    """
    device = ScriptDevice(script)
    with AgentClient(device, TARGET):
        pass
    with (
        pytest.raises(DeviceError, match="does not compute in int8"),
        AgentClient(device, Target(runtime="openvino", precision="int8")),
    ):
        pass


def test_other_levels_and_more_threads_than_there_are_are_refused(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(TargetError, match="no optimisation level 'basic'; it has all"):
        load(path, Target(runtime="openvino", optimisation="basic"))
    with pytest.raises(TargetError, match=r"would use \d+ threads here, not 1000: set threads = \d+"):
        load(path, Target(runtime="openvino", threads=1000))


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, 4, "height", 8), TensorProto.FLOAT, "only the batch may be dynamic"),
        (None, TensorProto.FLOAT, "only the batch may be dynamic"),
        ((1, 4, 0, 8), TensorProto.FLOAT, "only the batch may be dynamic"),
        ((2, 4), TensorProto.FLOAT, "x has batch 2, the target has batch 1"),
        ((1, 4), TensorProto.DOUBLE, "type f64"),
        ((1, 4), TensorProto.STRING, "cannot load|type string"),
        ((1, 1 << 40, 1 << 20), TensorProto.FLOAT, "cannot load"),
    ],
)
def test_inputs_that_cannot_be_bound(tmp_path, shape, kind, message):
    with pytest.raises(MeasurementError, match=message):
        load(write_relu(tmp_path / "m.onnx", shape, kind))


def test_files_that_cannot_be_run(tmp_path):
    whole = write_model(tmp_path / "whole.onnx").read_bytes()
    path = tmp_path / "m.onnx"
    for data in (b"", b"not a model", whole[: len(whole) // 2], whole[:-20]):
        path.write_bytes(data)
        with pytest.raises(MeasurementError, match=r"cannot load m\.onnx: (?!.*Exception from)."):
            load(path)
    with pytest.raises(MeasurementError, match=r"cannot load m\.onnx.*Nonsense"):
        load(write_relu(path, (1, 4), operator="Nonsense"))
    with pytest.raises(MeasurementError, match=r"cannot load missing\.onnx"):
        load(tmp_path / "missing.onnx")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(
    "space", [MobileNetV3Space(resolutions=(96,)), NasBench201Space(cells=2)], ids=lambda s: s.name
)
def test_kernels_belong_to_blocks_and_sum_to_the_whole(tmp_path, space, precision):
    target = Target(runtime="openvino", precision=precision)
    arch = rows_of(space.sample(1, np.random.default_rng(0)))[0]
    path = write_arch(space, arch, target, tmp_path / "net")
    plain, profiled = load(path, target), load(path, target, nodes=True)
    seconds = []
    for _ in range(25):
        begin = time.thread_time()  # with one thread, it is this one that computes
        plain.run()
        seconds.append(time.thread_time() - begin)
        profiled.run()
    found = profiled.close()
    assert plain.close() is None
    assert found is not None
    assert len(found.us) == 25
    assert all(len(row) == len(found.names) for row in found.us)
    typical = np.median(found.us, axis=0)
    nodes = list(zip(found.names, typical, strict=True))
    placed = {space.positions.index(position) for position, _ in space.placed_blocks(arch)}
    owners = set(position_times(nodes))
    assert owners <= placed
    assert len(owners) > len(placed) / 2
    without = sum(us for name, us in nodes if block_index(name) is None)
    assert without < 0.1 * sum(typical)
    assert 0.6 < sum(typical) * 1e-6 / np.median(seconds) < 2.5  # counters see interruptions by other processes


class Request:
    """A request whose counters are those of nodes with the given times in every inference."""

    def __init__(self, us: np.ndarray) -> None:
        self._totals, self.count = us.cumsum(axis=0), 0

    @property
    def profiling_info(self) -> list[SimpleNamespace]:
        self.count += 1
        return [
            SimpleNamespace(real_time=timedelta(microseconds=int(total / self.count)))
            for total in self._totals[self.count - 1]
        ]


def counted(us: np.ndarray) -> np.ndarray:
    """(runs, nodes) times that the counters give; beside the nodes, every run takes three microseconds."""
    counters, request = _Counters(), Request(us)
    for run in us:
        counters.read(request, float(run.sum()) + 3)
    found = counters.profile(tuple("abcdefgh"[: us.shape[1]]))
    assert len(found.us) == len(us)
    return np.array(found.us)


def test_averages_become_times():
    rng = np.random.default_rng(0)
    true = np.array([250.0, 17.3, 3.6, 1.2])
    us = true * rng.uniform(0.95, 1.05, (60, 4))
    np.testing.assert_allclose(np.median(counted(us), axis=0), true, rtol=0.02, atol=0.8)
    # the first inference, which sets everything up, and interruptions do not count
    us[0] = 5000
    us[40, 0] += 8000
    us[50, 2] += 4000
    assert abs(us.mean(axis=0) - true).min() > 60  # what plain averages would say
    found = counted(us)
    np.testing.assert_allclose(np.median(found, axis=0), true, rtol=0.02, atol=3)
    # a machine that becomes slower slows every node of these runs, so that anchors beside them make up for it
    us = true * np.repeat([1.0, 1.3], 40)[:, None]
    found = counted(us)
    np.testing.assert_allclose(found[50] / found[20], 1.3, rtol=0.01)
    np.testing.assert_allclose(found[50], 1.3 * true, rtol=0.1, atol=0.8)
    # one inference is all there is
    np.testing.assert_allclose(counted(np.array([[30.0, 5.0]])), [[30.5, 5.5]])
    assert np.isfinite(counted(np.array([[30.0, 5.0], [900.0, 900.0]]))).all()


def test_counters_that_cannot_be_read():
    counters = _Counters()
    with pytest.raises(MeasurementError, match="there was no run"):
        counters.profile(("a",))
    counters.read(Request(np.array([[5.0, 3.0]])), 9.0)
    with pytest.raises(MeasurementError, match="same nodes in every run"):
        counters.profile(("a",))
    with pytest.raises(MeasurementError, match="no node of a microsecond"):
        counted(np.full((9, 3), 0.4))


@pytest.mark.parametrize("target", [TARGET, Target(precision="int8")], ids=Target.slug)
def test_tables(tmp_path, target):
    """From a space to a table and its predictions, as `hwnas profile` makes it."""
    space = NasBench201Space(channels=4, cells=1, resolution=8, num_classes=5)
    config = SweepConfig(networks=4, fit=3, held_out=2, searched=0, group=9, plan=PLAN)
    table = profile(space, target, {"local": LocalDevice()}, tmp_path / "table.json", config)
    assert table.target == target
    assert table.fingerprint[target.runtime]
    assert table.validation is not None
    assert table.validation.mean_error < 1  # it is a measurement, how good is not for a busy machine to say
    assert all(row.ms > 0 for row in table.rows.values())
