from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import MeasurementError, TargetError
from hwprof.runtimes.ncnn_files import has_int8_weights, input_shapes, read_text, sealed
from hwprof.target import Plan, Target

ncnn = pytest.importorskip("ncnn", reason="needs ncnn: pip install ncnn")
NcnnRuntime = pytest.importorskip("hwprof.runtimes.ncnn").NcnnRuntime

TARGET = Target(runtime="ncnn")
LOOSE = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=4, visit_ms=1.0, **LOOSE)
# A 1x1 convolution read by an activation that works in place and by an addition, both of which a Concat reads.
LAYERS = """\
Input x 0 1 x 0=12 1=10 2=8
Convolution b0:conv 1 1 x y 0=8 1=1 5=1 6=64
Split b0:split 1 2 y y.0 y.1
HardSwish b1:act 1 1 y.0 a 0=0.16666667 1=0.5
BinaryOp b2:double 1 1 y.1 d 0=2 1=1 2=2.0
ReLU b2:relu 1 1 d r
Concat b3:cat 2 1 r a z 0=0
"""
WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype("<f4")
BIAS = np.random.default_rng(1).standard_normal(8).astype("<f4")


def content() -> tuple[str, bytes]:
    return f"7767517\n7 8\n{LAYERS}", bytes(4) + WEIGHT.tobytes() + BIAS.tobytes()


def computed(images: np.ndarray) -> np.ndarray:
    y = np.einsum("oi,nihw->nohw", WEIGHT, images) + BIAS[:, None, None]
    return np.concatenate([np.maximum(2 * y, 0), y * np.clip(y + 3, 0, 6) / 6], axis=1)


def save(path: Path, text: str, weights: bytes | None) -> Path:
    path.write_text(text, encoding="utf-8")
    if weights is not None:
        path.with_suffix(".bin").write_bytes(weights)
    return path


def sealed_files(path: Path) -> Path:
    text, weights = content()
    return save(path, sealed(text, weights), weights)


def big(path: Path, blocks: int = 6, size: int = 40, channels: int = 32) -> Path:
    """A chain of 3x3 convolutions of a few hundred microseconds."""
    rng = np.random.default_rng(0)
    lines, weights = [f"Input x0 0 1 x0 0={size} 1={size} 2={channels}"], b""
    for number in range(blocks):
        lines.append(
            f"Convolution b{number}:conv 1 1 x{number} x{number + 1} 0={channels} 1=3 4=1 5=0 6={9 * channels**2} 9=1"
        )
        weights += bytes(4) + (rng.standard_normal(9 * channels**2) / 17).astype("<f4").tobytes()
    text = "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""])
    return save(path, sealed(text, weights), weights)


@pytest.fixture(scope="module")
def client() -> Iterator[AgentClient]:
    """One agent for all tests: no damaged file may end it."""
    with AgentClient(make_device("local"), TARGET) as opened:
        yield opened


def infer(client: AgentClient, model: Path, images: np.ndarray) -> np.ndarray:
    file = model.with_name("images.npy")
    np.save(file, images)
    (output,) = client.infer(model, [file])
    return np.frombuffer(output.data, "<f4").reshape(output.shape)


def test_inference_over_the_agent(client, tmp_path):
    images = np.random.default_rng(2).standard_normal((3, 8, 10, 12)).astype(np.float32)
    output = infer(client, sealed_files(tmp_path / "m.ncnn.param"), images)
    np.testing.assert_allclose(output, computed(images), rtol=1e-4, atol=1e-5)


def test_group_with_node_times(client, tmp_path):
    small, large = big(tmp_path / "small.param", blocks=2), big(tmp_path / "large.param", blocks=8)
    group = client.measure({"large": large}, {"small": small}, Plan(**LOOSE), nodes=True)
    (result,) = group.results
    assert 2 < result.ratio < 8
    assert [name for name, _ in result.nodes] == [f"b{number}:conv" for number in range(8)]
    assert 0.6 * result.ratio < sum(ratio for _, ratio in result.nodes) < 1.6 * result.ratio
    assert min(ratio for _, ratio in result.nodes) > 0.02 * result.ratio


@pytest.mark.parametrize("profiled", [False, True])
@pytest.mark.parametrize(
    "target", [TARGET, Target(runtime="ncnn", threads=2), Target(runtime="ncnn", optimisation="none")]
)
def test_runs_compute_the_same_however_they_are_timed(target, profiled, tmp_path):
    """Layers that work in place must not do so on what another layer still reads, nor on the bound input."""
    model = NcnnRuntime().load(sealed_files(tmp_path / "m.param"), target, profile_nodes=profiled)
    images = np.random.default_rng(0).standard_normal((8, 10, 12)).astype(np.float32)[None]
    for _ in range(3):
        model.run()
        np.testing.assert_allclose(np.array(model._held)[None], computed(images), rtol=1e-4, atol=1e-5)
    profile = model.close()
    if profiled:
        assert profile.names == ("b0:conv", "b2:double", "b2:relu", "b1:act", "b3:cat")  # as the Concat asks for them
        assert len(profile.us) == 3
        assert all(us > 0 for run in profile.us for us in run)
    else:
        assert profile is None


def damaged() -> dict[str, tuple[str, bytes | None]]:
    text, weights = content()
    whole = sealed(text, weights)
    chance = random.Random(0)
    cases: dict[str, tuple[str, bytes | None]] = {
        "no weights": (whole, None),
        "empty": ("", weights),
        "nonsense": ("not a model", weights),
        "another magic": (whole.replace("7767517", "7767518"), weights),
        "counts": (text.replace("7 8", "8 8"), weights),
        "no counts": ("7767517\n", weights),
        "edited": (whole.replace("0=12", "0=13"), weights),
        "weights too long": (whole, weights + b"\0"),
        "weights of another": (whole, weights[:-1] + bytes([weights[-1] ^ 1])),
        "unknown layer": (text.replace("HardSwish", "SoftSwash"), weights),
        "blobs without a number": (text.replace("act 1 1", "act 1 one"), weights),
        "fewer blobs": (text.replace("act 1 1", "act 1 9"), weights),
        "unknown blob": (text.replace("act 1 1 y.0", "act 1 1 q"), weights),
        "input without a shape": (text.replace(" 0=12 1=10 2=8", ""), weights),
        "input without channels": (text.replace(" 0=12 1=10 2=8", " 0=12 2=8"), weights),
        "input of nothing": (text.replace(" 0=12", " 0=0"), weights),
        "only an input": ("7767517\n1 1\nInput x 0 1 x 0=3\n", b""),
        "int8 weights": (text.replace("6=64", "6=64 8=2"), weights),
    }
    for _ in range(8):
        cut = chance.randrange(len(whole) - 2)
        cases[f"text cut at {cut}"] = whole[:cut], weights
        cut = chance.randrange(len(weights))
        cases[f"weights cut at {cut}"] = whole, weights[:cut]
        cases[f"weights cut at {cut}, not sealed"] = text, weights[:cut]
    cases.pop(f"text cut at {len(text)}", None)  # that is a whole file without a seal
    return cases


@pytest.mark.parametrize(("text", "weights"), damaged().values(), ids=damaged())
def test_damaged_files_are_errors_of_the_file(client, text, weights, tmp_path):
    process = client._process.pid
    with pytest.raises(MeasurementError, match=r"m\.ncnn\.param|\.param file"):
        client.measure({"m": save(tmp_path / "m.ncnn.param", text, weights)}, {}, PLAN)
    client.measure({"whole": sealed_files(tmp_path / "whole.ncnn.param")}, {}, PLAN)
    assert client._process.pid == process


def test_bytes_that_are_no_text(client, tmp_path):
    path = sealed_files(tmp_path / "m.param")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MeasurementError, match=r"m\.param"):
        client.measure({"m": path}, {}, PLAN)


def test_files_of_others_have_no_seal(client, tmp_path):
    text, weights = content()
    images = np.ones((1, 8, 10, 12), np.float32)
    output = infer(client, save(tmp_path / "m.param", text, weights), images)
    np.testing.assert_allclose(output, computed(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 12, 10), (1, 8, 10), (8, 10, 12)])
def test_inputs_of_another_shape(client, shape, tmp_path):
    with pytest.raises(MeasurementError, match=r"takes inputs of the shapes \[\(1, 8, 10, 12\)\]"):
        infer(client, sealed_files(tmp_path / "m.param"), np.zeros(shape, np.float32))


def test_inputs_of_another_number(tmp_path):
    model = NcnnRuntime().load(sealed_files(tmp_path / "m.param"), TARGET, profile_nodes=False)
    with pytest.raises(MeasurementError, match="takes inputs"):
        model.infer([])
    model.close()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target(runtime="ncnn", batch=2), "batch must be 1, got 2"),
        (Target(runtime="ncnn", precision="bf16"), "bf16 needs ncnn 1.0.20260526 or newer, this one is 1.0.20260114"),
        (Target(runtime="ncnn", optimisation="basic"), "no optimisation level 'basic'; it has all, none"),
    ],
)
def test_targets_that_ncnn_cannot_be(target, message, tmp_path, monkeypatch):
    if target.precision == "bf16":
        monkeypatch.setattr(ncnn, "__version__", "1.0.20260114")
    with pytest.raises(TargetError, match=message):
        NcnnRuntime().load(sealed_files(tmp_path / "m.param"), target, profile_nodes=False)


FLAGS = {
    "fp32": (False, False, False),
    "fp16": (True, False, False),
    "bf16": (False, True, False),
    "int8": (True, False, True),
}


@pytest.mark.parametrize(("precision", "expected"), FLAGS.items(), ids=FLAGS)
def test_precision_is_what_ncnn_may_do(precision, expected, tmp_path):
    target = Target(runtime="ncnn", precision=precision, threads=2, optimisation="none")
    model = NcnnRuntime().load(sealed_files(tmp_path / "m.param"), target, profile_nodes=False)
    options = model._net.opt
    assert (options.use_fp16_storage, options.use_bf16_storage, options.use_int8_inference) == expected
    assert (options.use_fp16_arithmetic, options.use_fp16_packed) == (expected[0], expected[0])
    assert options.num_threads == 2
    assert options.lightmode
    for name in ("use_vulkan_compute", "use_packing_layout", "use_winograd_convolution", "use_sgemm_convolution"):
        assert not getattr(options, name)
    model.close()


def test_versions_say_what_changes_latency():
    versions = NcnnRuntime().versions()
    assert versions["ncnn"] == ncnn.__version__
    assert versions["vulkan"] == "off"
    assert versions["ncnn_cpu_features"]


def test_clock_of_several_threads_is_the_wall():
    assert NcnnRuntime().clock(TARGET).cpu is not None
    assert NcnnRuntime().clock(Target(runtime="ncnn", threads=2)).cpu is None


def test_what_a_text_says(tmp_path):
    text, _ = content()
    assert read_text(sealed_files(tmp_path / "m.param")) == text
    assert input_shapes(text) == {"x": (8, 10, 12)}
    assert input_shapes("7767517\n2 2\nInput a 0 1 a 0=3\nInput b 0 1 b 0=3 1=4\n") == {"a": (3,), "b": (4, 3)}
    assert not has_int8_weights(text)
    assert has_int8_weights(text.replace("6=64", "8=102"))
    assert not has_int8_weights(text.replace("6=64", "18=102 8=0").replace("2=2.0", "8=1"))
