"""The comparison of latency predictors, on a device whose times are the sum of what its operators compute."""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from torch import Tensor, nn

from hwnas.graphs import write_arch
from hwnas.graphs.onnx import onnx_model
from hwnas.graphs.plain import block_index, traced_graph
from hwnas.latency.covering import random_archs
from hwnas.latency.index import BlockIndex
from hwnas.recipe import parse_recipe
from hwnas.run import Run
from hwnas.space import format_arch, parse_arch
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.trace import trace
from hwprof.client import ATTEMPTS, AgentClient, Group, Result
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError
from hwprof.table import LatencyTable, Model, Row, write_table
from hwprof.target import Plan, Target
from hwprof.timing import geometric_mean

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
FINGERPRINT = {"cpu": "fake"}
GROUP_SECONDS = 0.5
LOOSE = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
RECIPE = """
name = "tiny"
[space]
name = "mobilenetv3"
num_classes = 5
in_channels = 1
resolutions = [16, 24]
depths = [1, 2]
kernels = [3, 5]
expands = [2, 3]
stem_width = 8
stage_widths = [8, 16]
stage_strides = [2, 1]
se = [false, true]
activations = ["relu", "hardswish"]
head_widths = [16, 24]
[profile]
table = '{table}'
"""


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    """benchmarks/latency_prediction.py as a module, with its folder importable as it is for a script."""
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("latency_prediction", BENCHMARKS / "latency_prediction.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def graph_ms(model: onnx.ModelProto) -> float:
    """What the simulated device takes: operators, weights and outputs each have their price, reshaping has none."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {
        value.name: [extent.dim_value for extent in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    return sum(
        1e-3
        + 1e-6 * sum(weights.get(name, 0) for name in node.input)
        + 1e-6 * sum(float(np.prod(shapes[name])) for name in node.output)
        for node in model.graph.node
        if node.op_type != "Reshape"
    )


class FakeClient:
    """An agent on the simulated device. `refuse` says why a model is refused in the n-th session, `dies` how often."""

    sessions = 0
    dies = 0
    restarts = 0
    asked: list[list[str]]

    def __init__(self, *_: Any) -> None:
        FakeClient.sessions += 1
        FakeClient.asked.append([])

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    fingerprint = FINGERPRINT
    patiently = AgentClient.patiently
    _device, _waiting = LocalDevice(), staticmethod(lambda what: None)

    @staticmethod
    def refuse(session: int, name: str) -> str | None:
        return None

    def restart(self, patience_seconds: float = 0.0) -> None:
        FakeClient.restarts += 1

    def measure(self, models: dict[str, Path], anchors: dict[str, Path], plan: Plan, *, seed: int) -> Group:
        if FakeClient.dies:
            FakeClient.dies -= 1
            raise DeviceError("the agent on fake ended")
        FakeClient.asked[-1] += models
        times = {name: (graph_ms(onnx.load(path)),) * 3 for name, path in anchors.items()}
        scale = geometric_mean([statistics.median(values) for values in times.values()])
        results = []
        for name, path in models.items():
            ratio, reason = graph_ms(onnx.load(path)) / scale, self.refuse(FakeClient.sessions, name)
            results.append(Result(name, ratio, 0.01, 0.01, (ratio,) * 3, ratio * scale, 0.0, reason, None))
        return Group(tuple(results), (scale,) * 3, times, 0.0, GROUP_SECONDS, 0.0, 0, {"load_1min": "0.50"})


@pytest.fixture
def fake(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    monkeypatch.setattr(sys.modules["baselines.session"], "AgentClient", FakeClient)
    for name, value in (("sessions", 0), ("dies", 0), ("restarts", 0), ("asked", [])):
        monkeypatch.setattr(FakeClient, name, value, raising=False)
    return FakeClient


def exact_ms(run: Run, arch: Any, folder: Path) -> float:
    return graph_ms(onnx.load(write_arch(run.space, run.space.check(arch), Target(), folder / "one")))


def make_run(folder: Path, fingerprint: dict[str, str] = FINGERPRINT) -> Run:
    """A run whose table was measured on the simulated device, with errors of some percent in its rows."""
    path = folder / "table.json"
    run = Run(parse_recipe(RECIPE.format(table=path)), RECIPE.format(table=path))
    rng = np.random.default_rng(0)
    index = BlockIndex(run.space)
    archs = random_archs(run.space, 25, rng, exclude=np.empty((0, len(run.space.slots)), dtype=np.int64))
    roles = ["anchor"] * 3 + ["fit"] * 10 + ["held-out"] * 12
    models = tuple(
        Model(format_arch(arch), role, exact_ms(run, arch, folder), 0.01)
        for arch, role in zip(archs, roles, strict=True)
    )
    rows = {
        key: Row(graph_ms(onnx_model(traced_graph(block.trace))) * float(rng.uniform(0.96, 1.04)), 0.01, 3)
        for key, block in zip(index.keys, index.blocks, strict=True)
    }
    provenance = {"space": {"name": run.space.name, **run.space.config}, "profiled_networks": 5, "device_seconds": 9.0}
    write_table(LatencyTable(Target(), fingerprint, provenance, 0.0, models, None, rows), path)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def archs(run: Run) -> np.ndarray:
    seen = np.array([parse_arch(model.name) for model in run.table.models])
    return random_archs(run.space, 8, np.random.default_rng(7), exclude=seen)


def context_of(archs: np.ndarray, train_networks: int = 12) -> Any:
    context = sys.modules["baselines.session"].Context(seed=3, unseen=archs, train_networks=train_networks)
    context.network_seconds = 0.25
    return context


def operators(nodes: Any, model: onnx.ModelProto) -> Counter[tuple[str, tuple[int, ...]]]:
    """Operators with the shape of their weights."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return Counter((node.op_type, shapes.get(node.input[1], ()) if len(node.input) > 1 else ()) for node in nodes)


@pytest.mark.parametrize("name", ["mobilenetv3", "nasbench201"])
def test_isolated_blocks_and_kernels_have_the_operators_of_the_whole_network(
    benchmark: ModuleType, run: Run, tmp_path: Path, name: str
) -> None:
    split = sys.modules["baselines.kernels"].kernels
    space = run.space if name == "mobilenetv3" else NasBench201Space(channels=4, cells=1, resolution=8)
    for arch in space.sample(4, np.random.default_rng(1)):
        net = onnx.load(write_arch(space, space.check(arch), Target(), tmp_path / "net"))
        for position, block in space.placed_blocks(space.check(arch)):
            number = space.positions.index(position)
            whole = operators([node for node in net.graph.node if block_index(node.name) == number], net)
            alone = onnx_model(traced_graph(block.trace))
            onnx.checker.check_model(alone, full_check=True)
            assert operators(alone.graph.node, alone) == whole
            parts: Counter[Any] = Counter()
            for kernel in split(block.trace):
                part = onnx_model(traced_graph(kernel.trace))
                onnx.checker.check_model(part, full_check=True)
                parts += operators(part.graph.node, part)
            del whole["Reshape", (2,)]
            assert parts == whole


def test_kernels_fuse_what_only_the_next_operator_reads(benchmark: ModuleType, run: Run) -> None:
    split = sys.modules["baselines.kernels"].kernels
    block = next(block for block in run.index.blocks if "se=1" in block.key and "in_channels=16" in block.key)
    assert [kernel.kind for kernel in split(block.trace)] == [
        "conv + batch_norm + hardswish",
        "depthwise conv + batch_norm + hardswish",
        "global_avg_pool",
        "conv + relu",
        "conv + hardsigmoid",
        "mul",
        "conv + batch_norm",
        "add",
    ]
    first = split(block.trace)[0]
    assert first.config[1:5] == (16, block.mid_channels, 1, 1)
    assert first == split(block.trace)[0]


class ReadTwice(nn.Module):
    """A convolution whose output both its activation and the sum read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.relu(y) + y


def test_what_two_operators_read_ends_a_kernel(benchmark: ModuleType) -> None:
    found = sys.modules["baselines.kernels"].kernels(trace(ReadTwice(), [(4, 8, 8)]))
    assert [kernel.kind for kernel in found] == ["conv", "relu", "add"]


def test_every_kind_of_kernel_is_sampled(benchmark: ModuleType, run: Run) -> None:
    module = sys.modules["baselines.kernels"]
    distinct = list(dict.fromkeys(kernel for block in run.index.blocks for kernel in module.kernels(block.trace)))
    kinds = {kernel.kind for kernel in distinct}
    assert len(kinds) < 20 < len(distinct)
    chosen = module.sample(distinct, 20, np.random.default_rng(0))
    assert len(set(chosen)) == 20
    assert {kernel.kind for kernel in chosen} == kinds
    assert set(module.sample(distinct, 10_000, np.random.default_rng(0))) == set(distinct)


def test_where_time_is_additive_isolated_blocks_are_exact(
    run: Run, archs: np.ndarray, fake: type[FakeClient], tmp_path: Path
) -> None:
    raw, fitted = sys.modules["baselines.isolated_blocks"].isolated_blocks(run, archs, context_of(archs))
    exact = [exact_ms(run, arch, tmp_path) for arch in archs]
    np.testing.assert_allclose(raw.predicted_ms, exact, rtol=1e-5)  # a table has six digits
    np.testing.assert_allclose(fitted.predicted_ms, exact, rtol=1e-4)
    assert raw.device_seconds == GROUP_SECONDS * -(-len(run.index.blocks) // 32)
    assert fitted.device_seconds == raw.device_seconds + 10 * 0.25
    assert fake.sessions == 1


def test_forests_of_kernels_are_near_where_every_kernel_was_measured(
    run: Run, archs: np.ndarray, fake: type[FakeClient], tmp_path: Path
) -> None:
    raw, fitted = sys.modules["baselines.kernels"].isolated_kernels(run, archs, context_of(archs))
    exact = np.array([exact_ms(run, arch, tmp_path) for arch in archs])
    assert np.abs(raw.predicted_ms / exact - 1).max() < 0.1
    assert np.abs(fitted.predicted_ms / exact - 1).mean() < 0.05


def test_boosting_learns_from_other_networks_than_it_predicts(run: Run, fake: type[FakeClient], tmp_path: Path) -> None:
    # The first networks that it would draw are those to predict.
    nothing = np.empty((0, len(run.space.slots)), dtype=np.int64)
    archs = random_archs(run.space, 60, np.random.default_rng(3 + 1), exclude=nothing)[:8]
    (found,) = sys.modules["baselines.boosting"].boosting(run, archs, context_of(archs, 60))
    (names,) = fake.asked
    assert len(set(names)) == len(names) == 60
    assert not {format_arch(arch) for arch in archs} & set(names)
    exact = np.array([exact_ms(run, arch, tmp_path) for arch in archs])
    assert np.abs(found.predicted_ms / exact - 1).mean() < 0.05
    assert found.device_seconds == GROUP_SECONDS * 8


def test_fits_on_macs_use_the_networks_that_calibrated_the_table(run: Run, archs: np.ndarray, fake: Any) -> None:
    found = sys.modules["baselines.macs"].macs(run, archs, context_of(archs))
    fit = [model for model in run.table.models if model.role == "fit"]
    total = run.index.counts(np.array([parse_arch(model.name) for model in fit])) @ [b.macs for b in run.index.blocks]
    ms = np.array([model.ms for model in fit])
    slope, intercept = np.polyfit(total, ms, 1, w=1 / ms)
    wanted = intercept + slope * (run.index.counts(archs) @ [block.macs for block in run.index.blocks])
    np.testing.assert_allclose(found[0].predicted_ms, wanted, rtol=1e-9)
    assert [baseline.device_seconds for baseline in found] == [2.5, 2.5]
    assert fake.sessions == 0


def test_all_methods_are_judged_on_the_same_networks(
    benchmark: ModuleType, run: Run, archs: np.ndarray, fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {(1, format_arch(archs[2])), (5, format_arch(archs[5]))}
    monkeypatch.setattr(fake, "refuse", staticmethod(lambda *visit: "busy" if visit in bad else None))
    comparison = benchmark.compare(run, archs, context_of(archs), list(benchmark.BASELINES))
    assert [format_arch(arch) for arch in comparison.archs] == [
        format_arch(arch) for row, arch in enumerate(archs) if row not in (2, 5)
    ]
    assert len(comparison.methods) == 9
    for method in comparison.methods:
        assert method.failed is None
        assert method.found.networks == len(method.predicted_ms) == 6
    ours, noise = comparison.methods[0], comparison.methods[-1]
    np.testing.assert_array_equal(ours.predicted_ms, run.predictor.predict_ms(comparison.archs))
    assert (ours.device_seconds, noise.found.mean_error) == (9.0, 0.0)
    assert 0 < ours.coverage <= 1
    assert comparison.times_ours(ours) == 1
    assert [session.what for session in comparison.sessions][0::4] == ["unseen networks", "unseen networks again"]


def test_a_baseline_that_fails_says_why_and_the_others_go_on(
    benchmark: ModuleType, run: Run, archs: np.ndarray, fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = run.index.keys[3]
    monkeypatch.setattr(fake, "refuse", staticmethod(lambda _, name: "the machine is busy" if name == bad else None))
    comparison = benchmark.compare(run, archs, context_of(archs), ["blocks", "macs"])
    failed = comparison.methods[1]
    assert failed.failed == (f"1 of {len(run.index.keys)} isolated blocks were refused 3 times: the machine is busy")
    assert failed.device_seconds > 0
    assert failed.found is comparison.times_ours(failed) is None
    assert [method.failed is None for method in comparison.methods] == [True, False, True, True, True]


def test_a_killed_agent_is_started_again(
    run: Run, archs: np.ndarray, fake: type[FakeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_networks = sys.modules["baselines.session"].measure_networks
    monkeypatch.setattr(fake, "dies", 1)
    assert len(measure_networks(run, context_of(archs), "networks", archs).ms) == len(archs)
    assert fake.restarts == 1
    monkeypatch.setattr(fake, "dies", ATTEMPTS)
    with pytest.raises(DeviceError, match="ended"):
        measure_networks(run, context_of(archs), "networks", archs)


def test_the_command_prints_the_table_and_writes_all_numbers(
    benchmark: ModuleType,
    fake: type[FakeClient],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(benchmark, "MANY", 1000)
    table = make_run(tmp_path).recipe.profile.table
    (tmp_path / "recipe.toml").write_text(RECIPE.format(table=table))
    monkeypatch.setattr(fake, "refuse", staticmethod(lambda _, name: "busy" if name.startswith("conv:") else None))
    arguments = [str(tmp_path / "recipe.toml"), "--unseen", "6", "--baselines", "blocks,boosting"]
    benchmark.main([*arguments, "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "blocks: no result: 4 of" in printed
    for text in ("machine: fake", f"command: python benchmarks/latency_prediction.py {arguments[0]}", "device s"):
        assert text in printed
    assert "6 unseen networks" in printed
    found = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    # Without a number given, as many networks as the table took: 5 profiled, 10 fitted, 12 held out.
    assert found["networks_for_the_table"] == 27
    assert [method["name"] for method in found["methods"]] == [
        "latency table",
        "blocks",
        "boosting, 27 whole networks",
        "noise floor (measured again)",
    ]
    assert len(found["networks"]) == 6
    for network in found["networks"]:
        assert network["predicted_ms"].keys() == {"latency table", "boosting, 27 whole networks"}
        assert network["first_ms"] == network["second_ms"]
    assert found["speed"].keys() == {"million_seconds", "read_table_ms", "predictor_ms"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baselines", "macs,flops"], "no baseline is called 'flops'; there are macs, blocks, kernels, boosting"),
        (["--unseen", "2"], "at least 3 networks are needed, got 2"),
        ([], "there is no recipe at"),
    ],
)
def test_wrong_arguments_are_told(
    benchmark: ModuleType, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        benchmark.main([str(tmp_path / "none.toml"), *arguments])
    assert ended.value.code != 0
    assert message in capsys.readouterr().err


def test_parts_run_in_the_real_runtime(benchmark: ModuleType, tmp_path: Path) -> None:
    with AgentClient(LocalDevice(), Target()) as client:
        run = make_run(tmp_path, client.fingerprint)
    module, session = sys.modules["baselines.kernels"], sys.modules["baselines.session"]
    context = context_of(np.empty((0, len(run.space.slots)), dtype=np.int64))
    context.plan = LOOSE
    kernels = list(dict.fromkeys(kernel for block in run.index.blocks for kernel in module.kernels(block.trace)))
    traces = {f"kernel {kernel.name}": kernel.trace for kernel in module.sample(kernels, 20, np.random.default_rng(0))}
    traces |= {block.key: block.trace for block in run.index.blocks[:6]}
    measured = session.measure_parts(run, context, "parts", traces)
    assert measured.ms.keys() == traces.keys()
    assert min(measured.ms.values()) > 0
    assert measured.device_seconds > 0
    assert context.sessions == [measured]
