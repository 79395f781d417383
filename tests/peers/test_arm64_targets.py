"""Latency tables of a foreign architecture, profiled over SSH and over adb. Emulated times prove the path, no more."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from agents import write_model
from phone import Phone

from hwnas.latency.predict import TablePredictor
from hwnas.latency.selection import SweepConfig
from hwnas.latency.sweep import profile
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.devices.adb import AdbDevice
from hwprof.devices.adb_connection import AdbConnection
from hwprof.errors import DeviceError, TargetError
from hwprof.table import LatencyTable
from hwprof.target import Plan, Target

pytestmark = pytest.mark.peers

LOOSE = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=3, visit_ms=0.5, **LOOSE)
CONFIG = SweepConfig(fit=4, held_out=3, searched=0, group=3, plan=PLAN)


@pytest.fixture(scope="module")
def space() -> MobileNetV3Space:
    return MobileNetV3Space(
        resolutions=(16,), num_classes=10, in_channels=1, stem_width=8, stage_widths=(8, 16), stage_strides=(2, 2),
        se=(False, True), activations=("relu", "hardswish"), depths=(1, 2), kernels=(3,), expands=(2, 3),
        head_widths=(32, 32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny model.onnx")


@pytest.fixture
def phone_text(phone: Phone, bundle: Path) -> str:
    return f"adb:{phone.serial}?bundle={bundle}"


def profiled(space: MobileNetV3Space, text: str, path: Path, runtime: str = "onnxruntime") -> LatencyTable:
    return profile(space, Target(device=text, runtime=runtime), {text: make_device(text)}, path, CONFIG)


def require_arm64_table(table: LatencyTable, space: MobileNetV3Space) -> None:
    assert table.fingerprint["machine"] == "aarch64"
    assert table.fingerprint["emulated"] == "qemu-user"
    archs = space.sample(9, np.random.default_rng(0))
    assert (TablePredictor(space, table).predict_ms(archs) > 0).all()


def test_a_board_over_ssh(board: str, space: MobileNetV3Space, tmp_path: Path) -> None:
    require_arm64_table(profiled(space, board, tmp_path / "board.json"), space)


def test_a_phone_over_adb_that_vanishes_and_comes_back(
    phone: Phone, phone_text: str, space: MobileNetV3Space, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hwprof.client.PAUSE_SECONDS", (0.5, 0.5))
    asked: list[tuple[str, ...]] = []
    answered: list[tuple[str, ...]] = []
    measure = AgentClient.measure

    def watched(self, models, anchors, plan, *, progress=None, **options):
        asked.append(tuple(models))

        def pull_the_cable(done: int) -> None:
            if len(asked) == 2 and done == 1:
                phone.switch_off()
                threading.Timer(2.0, phone.switch_on).start()

        group = measure(self, models, anchors, plan, progress=pull_the_cable, **options)
        answered.append(tuple(models))
        return group

    monkeypatch.setattr(AgentClient, "measure", watched)
    require_arm64_table(profiled(space, phone_text, tmp_path / "phone.json"), space)
    assert asked[1] == asked[2]
    assert [*asked[:1], *asked[2:]] == answered


@pytest.mark.parametrize("runtime", ["litert", "ncnn"])
def test_the_mobile_runtimes_on_a_phone(
    phone: Phone, phone_text: str, space: MobileNetV3Space, tmp_path: Path, runtime: str
) -> None:
    table = profiled(space, phone_text, tmp_path / "phone.json", runtime)
    require_arm64_table(table, space)
    assert table.fingerprint[runtime]


def test_outputs_are_those_of_this_machine_and_nothing_is_brought_twice(
    phone: Phone, phone_text: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[str] = []
    push = AdbConnection.push
    monkeypatch.setattr(AdbConnection, "push", lambda *args: (pushed.append(args[2]), push(*args))[1])
    np.save(tmp_path / "input.npy", np.random.default_rng(0).normal(size=(1, 4, 12, 12)).astype(np.float32))
    with AgentClient(make_device("local"), Target()) as here:
        (expected,) = here.infer(model, [tmp_path / "input.npy"])
    device = make_device(phone_text)
    for _ in range(2):
        with AgentClient(device, Target(device=phone_text)) as client:
            (output,) = client.infer(model, [tmp_path / "input.npy"])
            assert client.ready["identity"]["phone"] == "hwnas test phone"
            assert output.shape == expected.shape
            ours, theirs = (np.frombuffer(each.data, dtype="<f4") for each in (output, expected))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    models = [path.rpartition("/")[2] for path in pushed if "/run-" in path]
    assert models == ["tiny_model.onnx", "input.npy"]
    pushed.clear()
    with AgentClient(make_device(phone_text), Target(device=phone_text)):
        assert pushed == []


def test_model_files_are_removed_in_the_end_and_all_is_closed_to_others(
    phone: Phone, phone_text: str, model: Path
) -> None:
    shell = AdbConnection(phone.serial).run
    device = make_device(phone_text)
    with AgentClient(device, Target(device=phone_text)) as client:
        client.measure({"$(touch /data/harm) '": model}, {}, PLAN)
    assert len(shell("ls -d /data/local/tmp/hwprof/run-*/*/*").splitlines()) == 1
    assert shell("find /data/local/tmp/hwprof -maxdepth 1 -perm /077") == ""
    del client, device
    assert shell("ls /data/local/tmp/hwprof").split() == ["keep"]
    assert shell("ls /data") == "formats\nlocal\n"


def test_a_phone_without_python_says_what_to_do(phone: Phone) -> None:
    with pytest.raises(
        DeviceError, match=rf"{phone.serial} has no Python; make a bundle for its processor \(aarch64\)"
    ):
        AgentClient(make_device(f"adb:{phone.serial}"), Target()).restart()


def test_a_bundle_for_another_processor_is_refused(
    phone: Phone, phone_text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = make_device(phone_text)
    monkeypatch.setattr(AdbDevice, "_machine", lambda self: "riscv64")
    with pytest.raises(TargetError, match=rf"is for aarch64, but {phone.serial} is riscv64"):
        device.start_agent()


def test_the_phone_is_reached_from_its_own_network_only(phone: Phone) -> None:
    host, _, port = phone.serial.partition(":")
    AdbConnection(phone.serial).require_ready()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_adb_lists_the_phone_and_the_only_one_needs_no_serial(phone: Phone, bundle: Path) -> None:
    AdbConnection(phone.serial).require_ready()
    assert AdbDevice.found() == [f"adb:{phone.serial}"]
    with AgentClient(make_device(f"adb?bundle={bundle}"), Target()) as client:
        assert client.fingerprint["machine"] == "aarch64"


def test_a_phone_that_is_off_is_told(phone: Phone) -> None:
    phone.switch_off()
    try:
        with pytest.raises(DeviceError, match=rf"adb sees no device {phone.serial}; it sees none"):
            AgentClient(make_device(f"adb:{phone.serial}"), Target()).restart()
        with pytest.raises(DeviceError, match="adb sees no device nobody; it sees"):
            AgentClient(make_device("adb:nobody"), Target()).restart()
    finally:
        phone.switch_on()


def test_two_hosts_take_turns(phone: Phone, phone_text: str, model: Path) -> None:
    told: list[str] = []
    texts = (phone_text, f"{phone_text}&folder=/data/local/tmp/elsewhere")
    clients = [AgentClient(make_device(text), Target(device=text), waiting=told.append) for text in texts]
    with clients[0], clients[1]:
        long = Plan(sweeps=200, max_sweeps=200, max_runs=4, visit_ms=5.0, **LOOSE)
        begun = threading.Event()
        first = threading.Thread(
            target=lambda: clients[0].measure({"m": model}, {"a": model}, long, progress=lambda _: begun.set())
        )
        first.start()
        assert begun.wait(60)
        clients[1].measure({"m": model}, {"a": model}, PLAN)
        first.join()
    assert any("waiting for its turn" in text for text in told)
