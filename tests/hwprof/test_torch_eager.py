"""The runtime torch on the CPU: its files, which are checked, and its programs."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional
from torch_graphs import CONV, edited, parts, rebuilt, small_graph, write_small

from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import DeviceError, MeasurementError, TargetError
from hwprof.runtimes import make_runtime
from hwprof.runtimes.torch_eager import EagerModel, TorchCpu, load_program
from hwprof.runtimes.torch_file import GraphFile, Step, read_graph_file, write_graph_file
from hwprof.target import Plan, Target

TARGET = Target(runtime="torch")


@pytest.fixture(autouse=True)
def _threads_as_found():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def load(path: Path, target: Target = TARGET) -> EagerModel:
    return TorchCpu().load(path, target, profile_nodes=False)


def expected(images: np.ndarray) -> np.ndarray:
    weights = small_graph().steps[0].weights
    y = functional.conv2d(*(torch.from_numpy(a) for a in (images, weights["weight"], weights["bias"])), padding=1)
    return (y + functional.hardswish(y)).mean((2, 3)).numpy()


@pytest.mark.parametrize("optimisation", ["all", "basic"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("fp16", 5e-3), ("bf16", 5e-2)])
def test_a_model_computes_its_graph(tmp_path, optimisation, precision, tolerance):
    model = load(write_small(tmp_path / "net", 2), Target(batch=2, precision=precision, optimisation=optimisation))
    model.run()
    images = np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)
    for _ in range(2):  # what was bound, or asked before, does not matter
        (output,) = model.infer([images])
        assert output.dtype == np.float32
        np.testing.assert_allclose(output, expected(images), rtol=tolerance, atol=tolerance)
        images = images[::-1] * 2
    assert model.close() is None


def test_levels_are_memory_formats(tmp_path):
    path = write_small(tmp_path / "net")
    formats = {"all": torch.channels_last, "basic": torch.contiguous_format}
    for level, memory_format in formats.items():
        program, (images,) = load_program(path, Target(optimisation=level), "cpu")
        (function, *_), *_ = program._steps
        assert images.is_contiguous(memory_format=memory_format)
        assert function.keywords["weight"].is_contiguous(memory_format=memory_format)
        # so is what a convolution gives
        assert function(images).is_contiguous(memory_format=memory_format)
    with pytest.raises(TargetError, match="torch has no optimisation level 'none'; it has all, basic"):
        load(path, Target(runtime="torch", optimisation="none"))


def test_the_cast_is_inside_and_nothing_has_a_gradient(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        functional, "conv2d", lambda x, **_: seen.append((x.dtype, torch.is_grad_enabled())) or x[:, :1]
    )
    graph = small_graph()
    conv = Step("conv", "y", ("x",), graph.steps[0].weights, CONV)
    # meta, the run at loading, the run
    write_graph_file(GraphFile(("x",), "y", {"x": (1, 3, 6, 6), "y": (1, 1, 6, 6)}, (conv,)), tmp_path / "net")
    program, inputs = load_program(tmp_path / "net", Target(precision="bf16"), "cpu")
    assert inputs[0].dtype == torch.float32
    assert program(inputs).dtype == torch.float32
    assert seen[1:] == [(torch.bfloat16, False), (torch.bfloat16, True)]
    EagerModel("net", inputs, lambda: program(inputs)).run()
    assert seen[-1] == (torch.bfloat16, False)


def test_tensors_that_nothing_reads_any_more_are_freed(tmp_path):
    names = [f"t{number}" for number in range(30)]
    steps = tuple(Step("relu", after, (before,), {}, {}) for before, after in itertools.pairwise(names))
    graph = GraphFile((names[0],), names[-1], dict.fromkeys(names, (1, 4)), steps)
    write_graph_file(graph, tmp_path / "net")
    program, inputs = load_program(tmp_path / "net", TARGET, "cpu")
    alive: list[int] = []

    def spy(function):
        def run(tensor):
            alive.append(len(sys._getframe(1).f_locals["values"]))
            return function(tensor)

        return run

    program._steps = [(spy(function), *rest) for function, *rest in program._steps]
    program(inputs)
    assert set(alive) == {1}


def test_an_output_that_is_also_read_inside_is_kept(tmp_path):
    steps = (
        Step("relu", "y", ("x",), {}, {}),
        Step("sigmoid", "z", ("y",), {}, {}),
        Step("add", "w", ("z", "z"), {}, {}),
    )
    write_graph_file(GraphFile(("x",), "y", dict.fromkeys("xyzw", (1, 4)), steps), tmp_path / "net")
    (output,) = load(tmp_path / "net").infer([np.array([[-1, 0, 1, 2]], np.float32)])
    assert output.tolist() == [[0, 0, 1, 2]]


def test_threads_and_clock_are_the_targets(tmp_path):
    load(write_small(tmp_path / "net"), Target(runtime="torch", threads=2))
    assert torch.get_num_threads() == 2
    assert TorchCpu().clock(Target(threads=2)).cpu is None
    assert TorchCpu().clock(Target(threads=1)).cpu is not None


def test_through_the_agent(tmp_path):
    plan = Plan(sweeps=3, max_sweeps=3, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
    path = write_small(tmp_path / "net.torch.zip")
    with AgentClient(make_device("local"), TARGET) as client:
        assert client.fingerprint["torch"] == torch.__version__
        assert "accelerator" not in client.fingerprint
        group = client.measure({"net": path}, {"anchor": path}, plan)
        assert group.results[0].wall_ms > 0
        assert group.results[0].nodes is None
        assert not [name for name in group.state if name.startswith("gpu")]
        path.write_bytes(b"no zip")
        with pytest.raises(MeasurementError, match=r"torch cannot load net\.torch\.zip, it is damaged"):
            client.measure({"net": path}, {}, plan)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no GPU")
def test_without_a_gpu_the_runtime_of_gpus_says_so():
    message = "finds no NVIDIA GPU here|is a build without CUDA"
    with pytest.raises(DeviceError, match=message):
        AgentClient(make_device("local"), Target(runtime="torch-cuda", precision="fp16")).restart()
    with pytest.raises(DeviceError, match="the runtime torch"):
        make_runtime("torch-cuda").load(Path("net"), TARGET, profile_nodes=False)


@pytest.mark.parametrize("shapes", [[], [(1, 3, 6, 6)] * 2, [(2, 3, 6, 6)], [(1, 3, 6, 5)]])
def test_inputs_of_other_shapes_are_refused(tmp_path, shapes):
    model = load(write_small(tmp_path / "net"))
    with pytest.raises(MeasurementError, match=r"net takes inputs of the shapes \[\(1, 3, 6, 6\)\], got"):
        model.infer([np.zeros(shape, np.float32) for shape in shapes])


def test_another_batch_is_refused(tmp_path):
    with pytest.raises(MeasurementError, match="input x of net has batch 2, the target has batch 1"):
        load(write_small(tmp_path / "net", batch=2))


def _shape(name: str, shape: Any):
    return lambda text: text["shapes"].update({name: shape})


def _step(number: int, **changes: Any):
    return lambda text: text["steps"][number].update(changes)


def _attribute(**changes: Any):
    return lambda text: text["steps"][0]["attributes"].update(changes)


def _weight(**changes: Any):
    return lambda text: text["steps"][0]["weights"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.update(format="pickle"), "no graph for torch"),
        (lambda text: text.update(version=2), "its version is 2, this hwprof reads 1"),
        (lambda text: text.pop("steps"), "damaged: KeyError"),
        (lambda text: text.update(steps=3), "damaged: TypeError"),
        (lambda text: text.update(inputs=[]), "its inputs are"),
        (lambda text: text.update(inputs=["x", "x"]), "its inputs are"),
        (lambda text: text.update(inputs=["x", "y"]), "its inputs are"),
        (lambda text: text.update(inputs="x"), "the graph's inputs are 'x'"),
        (lambda text: text.update(output="nothing"), "its output is 'nothing'"),
        (lambda text: text["steps"].reverse(), "not all of them computed before|the weights end"),
        (lambda text: text["steps"].append(text["steps"][-1]), "is there twice"),
        (_step(0, kind="eval"), "b0:y is of the unknown kind 'eval'"),
        (_step(0, kind="__import__"), "unknown kind"),
        (_step(0, kind=["conv"]), "unknown kind"),
        (_step(1, kind="add"), "add of 1 inputs"),
        (_step(2, kind="relu"), "relu of 2 inputs"),
        (_step(1, kind="concat", inputs=[]), "concat of 0 inputs"),
        (_step(1, inputs=["later"]), "not all of them computed before"),
        (_step(1, output=7), "a step is called 7"),
        (_step(1, weights={"weight": [1]}), "hardswish has weights"),
        (_step(0, weights={"bias": [4]}), "conv has weights"),
        (_step(1, attributes={"inplace": True}), "hardswish has attributes"),
        (_step(0, attributes={}), "conv has attributes"),
        (_attribute(stride=[0, 1]), "stride is"),
        (_attribute(stride=1), "stride is 1"),
        (_attribute(stride=[1, 1, 1]), "stride is"),
        (_attribute(padding=[-1, 0]), "padding is"),
        (_attribute(padding=[1.0, 1]), "padding is"),
        (_attribute(padding=[10**9, 0]), "padding is"),
        (_attribute(dilation=[True, 1]), "dilation is"),
        (_attribute(groups=0), "groups is 0"),
        (_attribute(groups=2), "torch cannot load"),
        (_attribute(stride=[2, 2]), r"b0:y has the shape \(1, 4, 3, 3\), not \(1, 4, 6, 6\)"),
        (_weight(weight=[4, 3, 3]), "weight has the shape"),
        (_weight(weight=[4, 3, 3, 4]), "the weights end before those of b0:y"),
        (_weight(weight=[4, 3, 3, 2]), "its steps need"),
        (_weight(weight=[2**20, 2**20, 2**20, 2**20]), "has the shape"),
        (_weight(weight=[4, -3, 3, -3]), "has the shape"),
        (_weight(bias=[5]), "the weights end"),
        (_shape("x", [1, 3, 10**6, 10**6]), "x has the shape"),
        (_shape("x", [1, 3, 16000, 16000]), "b0:y has the shape"),
        (_shape("b0:a", [1, 4, 6, 7]), r"b0:a has the shape \(1, 4, 6, 6\), not \(1, 4, 6, 7\)"),
        (_shape("b1:f", [1, 10**12]), "b1:f has the shape"),
        (_shape("x", [1, 3, 6, True]), "x has the shape"),
        (_shape("x", []), "x has the shape"),
        (_shape("x", None), "x has the shape"),
        (_shape("unused", [1]), "its output is"),
    ],
)
def test_a_text_that_is_not_a_graph_is_an_error(tmp_path, edit, message):
    path = write_small(tmp_path / "net")
    edited(path, edit)
    with pytest.raises(MeasurementError, match=message):
        load(path)


def test_a_tensor_that_grows_without_end_is_never_made(tmp_path):
    """Doubled thirty times, four bytes are four gigabytes: each shape is known before anything is allocated."""
    names = [f"t{number}" for number in range(60)]
    steps = tuple(Step("concat", after, (before, before), {}, {}) for before, after in itertools.pairwise(names))
    shapes = {name: (1, 2 ** min(number, 30)) for number, name in enumerate(names)}
    write_graph_file(GraphFile((names[0],), names[-1], shapes, steps), tmp_path / "net")
    with pytest.raises(MeasurementError, match=r"t31 has the shape \(1, 2147483648\), not"):
        load(tmp_path / "net")


class Trap:
    """Unpickled, it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _compressed(path: Path) -> None:
    rebuilt(path, weights=bytes(2**22), compression=zipfile.ZIP_DEFLATED)


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.with_name("trapped"))))


def _saved_by_torch(path: Path) -> None:
    torch.save(Trap(path.with_name("trapped")), path)


def _pickled_weights(path: Path) -> None:
    rebuilt(path, weights=pickle.dumps(Trap(path.with_name("trapped"))))


def _renamed(name: str):
    def damage(path: Path) -> None:
        text, weights = parts(path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("graph.json", json.dumps(text))
            archive.writestr(name, weights)

    return damage


def _one_more(name: str):
    def damage(path: Path) -> None:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"#!/bin/sh")

    return damage


def _lying_size(path: Path) -> None:
    """The directory says that the weights are four gigabytes."""
    content = path.read_bytes()
    place = content.rindex(b"PK\x01\x02")
    huge = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(content[: place + 20] + huge + huge + content[place + 28 :])


def _bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    _, weights = parts(path)
    content[content.index(weights) + 8] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "FileNotFoundError"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[100:]), "damaged"),
        (lambda path: rebuilt(path, text=[1]), "no graph for torch"),
        (lambda path: rebuilt(path, weights=b""), "the weights end"),
        (lambda path: rebuilt(path, weights=parts(path)[1] + bytes(4)), "its steps need"),
        (_compressed, "is not stored as it is"),
        (_bit_of_a_weight, "Bad CRC-32"),
        (_lying_size, "not stored as it is|damaged"),
        (_pickled, "not a zip file"),
        (_saved_by_torch, "does not hold graph.json and weights.bin"),
        (_pickled_weights, "the weights end|its steps need"),
        (_renamed("../weights.bin"), "does not hold"),
        (_renamed("/weights.bin"), "does not hold"),
        (_one_more("../../escape"), "does not hold"),
        (_one_more("weights.bin"), "does not hold"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_damaged_file_is_an_error_and_nothing_worse(tmp_path, damage, message):
    path = write_small(tmp_path / "net")
    damage(path)
    with pytest.raises(MeasurementError, match=message):
        load(path)
    assert {file.name for file in tmp_path.iterdir()} <= {"net"}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> tuple[Path, bytes]:
    path = write_small(tmp_path_factory.mktemp("fuzz") / "net")
    return path, path.read_bytes()


@given(data=st.data())
def test_any_change_of_the_bytes_is_noticed_or_harmless(sound, data):
    path, content = sound
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(changed[: data.draw(st.integers(0, len(content)))]) if data.draw(st.booleans()) else changed)
    try:
        read = read_graph_file(path)
    except MeasurementError:
        return
    # of the zip's own fields, some mean nothing
    whole = small_graph()
    assert (read.inputs, read.output, read.shapes, read.steps) == (
        whole.inputs,
        whole.output,
        whole.shapes,
        whole.steps,
    )
    assert np.array_equal(read.steps[0].weights["weight"], whole.steps[0].weights["weight"])


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["x", "b0:y", "conv"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_a_text_with_anything_in_any_place_is_an_error_or_a_graph(sound, data):
    path, content = sound
    path.write_bytes(content)
    text, _ = parts(path)
    place: Any = text
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    rebuilt(path, text=text)
    with contextlib.suppress(MeasurementError):
        load(path).run()
