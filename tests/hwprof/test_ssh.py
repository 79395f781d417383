"""Profiling over SSH, against OpenSSH's own server."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from agents import SOURCES, write_model
from sshd import Sshd

from hwprof.client import AgentClient, host_name
from hwprof.devices import make_device, remote, ssh_connection
from hwprof.devices.ssh import SshDevice
from hwprof.devices.ssh_connection import SshConnection
from hwprof.errors import DeviceError, MeasurementError, TargetError
from hwprof.target import Plan, Target

pytestmark = pytest.mark.peers

LOOSE = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=4, visit_ms=1.0, **LOOSE)
LONG = Plan(sweeps=1500, max_sweeps=1500, max_runs=4, visit_ms=1.0, **LOOSE)
ENDLESS = Plan(sweeps=10**6, max_sweeps=10**6, **LOOSE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    """A machine that is up."""
    server = Sshd(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny model.onnx")


def connect(server: Sshd, **options: str) -> AgentClient:
    return AgentClient(make_device(server.text(**options)), Target(device="ssh:device"))


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def files(server: Sshd) -> list[str]:
    return sorted(path.name for path in server.device_folder.rglob("*") if path.is_file())


def test_a_group_is_measured_and_a_file_computed_over_ssh(server: Sshd, model: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(1, 4, 12, 12)).astype(np.float32)
    np.save(tmp_path / "input.npy", images)
    with connect(server) as client, AgentClient(make_device("local"), Target()) as here:
        group = client.measure({"m": model}, {"a": model}, PLAN, nodes=True)
        assert group.results[0].refused is None
        assert group.results[0].nodes
        assert client.fingerprint == here.fingerprint
        assert client.infer(model, [tmp_path / "input.npy"]) == here.infer(model, [tmp_path / "input.npy"])
        with pytest.raises(MeasurementError, match=r"cannot load missing.onnx"):
            client.measure({"m": tmp_path / "missing.onnx"}, {}, PLAN)
        assert client.measure({"m": model}, {}, PLAN).results[0].refused is None
    assert eventually(lambda: not server.agents())


def test_files_are_brought_once_to_a_closed_folder_and_models_are_removed_in_the_end(
    server: Sshd, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[str] = []
    push = SshConnection.push
    monkeypatch.setattr(SshConnection, "push", lambda *args: (pushed.append(args[2]), push(*args))[1])
    (tmp_path / "net.param").write_text("graph")
    (tmp_path / "net.bin").write_text("weights")
    device = make_device(server.text())
    for _ in range(3):
        with AgentClient(device, Target()) as client:
            client.measure({"m": model}, {"a": model}, PLAN)
    param = Path(device.put(tmp_path / "net.param"))
    assert (param.name, param.read_text(), param.with_suffix(".bin").read_text()) == ("net.param", "graph", "weights")
    assert [path.rpartition("/")[2] for path in pushed[1:]] == ["tiny_model.onnx", "net.param", "net.bin"]
    (tmp_path / "net.bin").write_text("Weights")
    changed = Path(device.put(tmp_path / "net.param"))
    assert changed.parent != param.parent
    assert changed.with_suffix(".bin").read_text() == "Weights"
    for path in (server.device_folder, *server.device_folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    (archive,) = server.device_folder.glob("keep/*/hwprof-*.pyz")
    del device, client
    assert files(server) == [archive.name]
    pushed.clear()
    with connect(server):
        pass
    assert pushed == []


def test_many_models_do_not_fill_the_disk(
    server: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setattr(remote, "MAX_RUN_BYTES", 10_000)
    device = make_device(server.text())
    for number in range(15):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 1000)
        device.tidy()
        device.put(model)
        device.put(tmp_path / f"{number}.bin")
    left = files(server)
    assert "14.bin" in left
    assert "tiny_model.onnx" in left
    assert "0.bin" not in left
    assert len(left) <= 12
    assert Path(device.put(tmp_path / "0.bin")).read_bytes() == bytes(1000)


def test_what_others_forgot_is_removed_and_what_is_in_use_stays(server: Sshd) -> None:
    with connect(server):
        (archive,) = server.device_folder.glob("keep/*/*.pyz")
    days = 86400
    for name, age in (("run-dead", 3), ("run-live", 0), ("keep/dead", 9), ("keep/live", 1)):
        folder = server.device_folder / name
        folder.mkdir()
        (folder / "file").write_text("x")
        os.utime(folder, (time.time() - age * days,) * 2)
    os.utime(archive.parent, (time.time() - 6 * days,) * 2)
    with connect(server):
        assert time.time() - archive.parent.stat().st_mtime < days
        left = {str(path.parent.relative_to(server.device_folder)) for path in server.device_folder.rglob("file")}
        assert left == {"run-live", "keep/live"}


def test_the_default_folder_is_the_users_cache(server: Sshd) -> None:
    with connect(server, folder=""):
        assert list((server.folder / "home" / ".cache" / "hwprof").glob("keep/*/*.pyz"))
    with connect(server, folder="~/elsewhere/ours"):
        assert list((server.folder / "home" / "elsewhere" / "ours").glob("keep/*/*.pyz"))


def refuse(server: Sshd, **options: str) -> str:
    with pytest.raises(DeviceError) as refused:
        connect(server, **options).restart()
    assert server.agents() == []
    return str(refused.value)


def test_another_host_key_is_refused(server: Sshd) -> None:
    server.trust("stranger")
    assert "does not have the host key that is known here" in refuse(server)


def test_an_unknown_host_key_is_refused_and_not_learnt(server: Sshd) -> None:
    server.trust(None)
    message = refuse(server)
    assert "the host key of device is not known here: connect once by hand (ssh -F " in message
    assert (server.folder / "known_hosts").read_text() == ""


def test_settings_that_accept_any_host_do_not_count(server: Sshd) -> None:
    server.trust(None)
    config = server.folder / "config"
    careless = "Host *\n  StrictHostKeyChecking no\n  NoHostAuthenticationForLocalhost yes\n  BatchMode no\n"
    config.write_text(careless + config.read_text())
    assert "is not known here" in refuse(server)


def test_a_key_that_is_not_let_in_is_told(server: Sshd) -> None:
    (server.folder / "authorized").write_text((server.folder / "stranger.pub").read_text())
    assert "device does not let us in without a password: bring it a key (ssh-copy-id -F " in refuse(server)
    with connect(server, key=str(server.folder / "stranger")):
        pass


def test_a_machine_that_is_down_is_told(server: Sshd) -> None:
    server.stop()
    assert "device cannot be reached: " in (message := refuse(server))
    assert "Connection refused" in message


def test_no_python_there_is_told(server: Sshd) -> None:
    message = refuse(server, python="venv/bin/python")
    assert "device has no venv/bin/python; name the Python there that has the runtime" in message


def test_a_login_script_that_prints_is_told(server: Sshd) -> None:
    server.stop()
    server.start('ForceCommand echo "Welcome to $(id -un)"; eval "$SSH_ORIGINAL_COMMAND"')
    assert "a login script on device prints 'Welcome to " in refuse(server)


def test_a_login_script_that_waits_is_told(server: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "LOGIN_SECONDS", 1.0)
    server.stop()
    server.start("ForceCommand sleep 600")
    assert "device does not answer within 1 s, or a login script there waits for something" in refuse(server)
    assert not server.clients()


def test_no_ssh_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match="there is no ssh program here: install OpenSSH's client"):
        AgentClient(make_device("ssh:device"), Target()).restart()


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0, reason="needs the right to mount a small file system")
def test_a_full_disk_is_told_and_leaves_nothing_half(server: Sshd, model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        (tmp_path / "large.onnx").write_bytes(bytes(2**20))
        with connect(server, folder=str(small / "hwprof")) as client:
            with pytest.raises(DeviceError, match=r"the disk of device is full .*free some space, or name another fol"):
                client.measure({"m": tmp_path / "large.onnx"}, {}, PLAN)
            assert [path for path in small.rglob("*large*") if path.is_file()] == []
            assert client.measure({"m": model}, {}, PLAN).results[0].refused is None
        del client
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.parametrize("sent", [b"", b"hal", b"whole", b"whole and more"])
def test_only_a_whole_file_takes_its_name(tmp_path: Path, sent: bytes) -> None:
    """A connection that breaks looks to the receiving end like the end of the file."""
    partial, there = tmp_path / "it's partial", tmp_path / "file"
    partial.write_bytes(sent)
    there.write_bytes(b"older")
    done = subprocess.run(["sh", "-c", remote.receive(str(partial), str(there), 5)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == ((0, "") if sent == b"whole" else (1, "incomplete\n"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert there.read_bytes() == (b"whole" if sent == b"whole" else b"older")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssh:", "an ssh device is USER@HOST"),
        ("ssh:-oProxyCommand=touch x", "an ssh device is"),
        ("ssh:pi@-oProxyCommand=x", "an ssh device is"),
        ("ssh:-pi@board", "an ssh device is"),
        ("ssh:pi@board;reboot", "an ssh device is"),
        ("ssh:pi@board`id`", "an ssh device is"),
        ("ssh:pi@board:0", "an ssh device is"),
        ("ssh:pi@board:66000", "an ssh device is"),
        ("ssh:pi@board:22:22", "an ssh device is"),
        ("ssh:pi@board\nx", "an ssh device is"),
        ("ssh:pi@board?shell=x", "ssh devices have no option 'shell'; they have python, folder, key, config"),
        ("ssh:pi@board?python=-c", "the option python of the device ssh:pi@board cannot be '-c'"),
        ("ssh:pi@board?folder=a%0Ab", "the option folder of"),
        ("ssh:pi@board?key=/nowhere/key", "the key of the device ssh:pi@board is not a file: /nowhere/key"),
        ("ssh:pi@board?config=/nowhere", "the config of the device"),
    ],
)
def test_a_text_that_is_no_ssh_device_is_refused(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        make_device(text)


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("ssh:board", "ssh board"),
        ("ssh:pi@board.local:2222", "ssh -p 2222 pi@board.local"),
        ("ssh:corp@x@10.0.0.7", "ssh corp@x@10.0.0.7"),
        ("ssh:pi@[fe80::1%eth0]:22", "ssh -p 22 pi@fe80::1%eth0"),
    ],
)
def test_an_ssh_device_is_what_a_person_would_type(text: str, typed: str) -> None:
    device = make_device(text)
    assert isinstance(device, SshDevice)
    assert device._connection._login.by_hand() == typed


def test_names_that_mean_something_to_a_shell_are_only_names(server: Sshd, tmp_path: Path) -> None:
    odd = tmp_path / "$(touch harm) '; touch harm #.onnx"
    write_model(odd)
    with connect(server, folder=f"{tmp_path}/it's $(touch harm)") as client:
        assert client.measure({"$(touch harm)": odd}, {}, PLAN).results[0].name == "$(touch harm)"
    assert not list(tmp_path.rglob("harm"))


def test_a_device_that_vanishes_costs_only_the_group_in_flight(server: Sshd, model: Path) -> None:
    told: list[str] = []
    device = make_device(server.text())
    attempts: list[int] = []
    outage = threading.Thread(target=lambda: (server.stop(), time.sleep(1.5), server.start()))

    def vanish(_: int) -> None:
        if len(attempts) == 2 and not outage.ident:
            outage.start()

    with AgentClient(device, Target(device="ssh:device"), waiting=told.append) as client:
        for number in range(3):

            def job(number: int = number) -> str:
                attempts.append(number)
                group = client.measure({f"m{number}": model}, {"a": model}, LONG, progress=vanish)
                return group.results[0].name

            assert client.patiently(job) == f"m{number}"
    outage.join()
    assert attempts == [0, 1, 1, 2]
    assert "starting it anew" in told[0]
    assert any("trying again for " in text and "Connection refused" in text for text in told)


def test_a_network_that_goes_silent_is_noticed(server: Sshd, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_connection, "ALIVE_SECONDS", 1)
    monkeypatch.setattr(ssh_connection, "ALIVE_COUNT", 1)

    def silence(done: int) -> None:
        for process in server.children() if done == 1 else ():
            os.kill(process, signal.SIGSTOP)

    with connect(server) as client:
        begin = time.monotonic()
        with pytest.raises(DeviceError, match="the agent on ssh:device ended"):
            client.measure({"m": model}, {"a": model}, ENDLESS, progress=silence)
        assert time.monotonic() - begin < 10


def test_another_machine_in_its_place_is_refused(server: Sshd, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwprof.client.PAUSE_SECONDS", (0.1, 0.1))
    with connect(server) as client:
        before = client.fingerprint
        client.ready["identity"]["cpu"] = "Cortex-A76"
        server.stop()
        server.start()
        with pytest.raises(
            DeviceError, match=r"another one than before.*: cpu was 'Cortex-A76', is '.*; its numbers do"
        ):
            client.patiently(lambda: client.measure({"m": model}, {}, PLAN))
        assert client.fingerprint == {**before, "cpu": "Cortex-A76"}


class Stop(Exception):
    pass


def test_two_hosts_take_turns_on_one_device(server: Sshd, model: Path) -> None:
    measuring, other_waits = threading.Event(), threading.Event()
    told: list[str] = []
    ended: list[float] = []
    begun: list[float] = []

    def progress(_: int) -> None:
        measuring.set()
        if other_waits.is_set():
            ended.append(time.monotonic())
            raise Stop

    def first() -> None:
        with connect(server) as client, pytest.raises(Stop):
            client.measure({"m": model}, {"a": model}, ENDLESS, progress=progress)

    def waiting(text: str) -> None:
        told.append(text)
        other_waits.set()

    thread = threading.Thread(target=first)
    thread.start()
    with AgentClient(make_device(server.text()), Target(device="ssh:device"), waiting=waiting) as second:
        assert measuring.wait(20)
        second.measure({"m": model}, {"a": model}, PLAN, progress=lambda _: begun.append(time.monotonic()))
    thread.join()
    assert begun[0] > ended[0]
    assert told[0].startswith("process ")
    assert f" for {host_name()} (since 2" in told[0]
    assert told[0].endswith(" measures on ssh:device: waiting for its turn")


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_host_leaves_nothing_running(server: Sshd, model: Path, busy: bool) -> None:
    script = f"""
import sys
from pathlib import Path
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.target import Plan, Target
client = AgentClient(make_device({server.text()!r}), Target())
client.restart()
if not {busy}:
    print("ready", flush=True)
    sys.stdin.read()
plan = Plan(sweeps=10**6, max_sweeps=10**6, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
client.measure({{"m": Path({str(model)!r})}}, {{}}, plan, progress=lambda _: print("ready", flush=True))
"""
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCES), "TMPDIR": folder},
    ) as host:  # fmt: skip
        assert host.stdout is not None
        assert host.stdout.readline() == "ready\n"
        assert server.agents()
        assert server.clients()
        host.send_signal(signal.SIGKILL)
    assert eventually(lambda: not server.agents())
    assert eventually(lambda: not server.clients())
    assert eventually(lambda: not server.children())


def test_an_ended_host_leaves_no_processes_and_no_folders(server: Sshd, model: Path) -> None:
    script = f"""
from pathlib import Path
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.target import Plan, Target
client = AgentClient(make_device({server.text()!r}), Target())
client.restart()
client.measure({{"m": Path({str(model)!r})}}, {{}}, Plan(sweeps=3, max_sweeps=3))
raise KeyboardInterrupt
"""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
        assert list(Path(folder).iterdir()) == []
    assert "KeyboardInterrupt" in done.stderr.splitlines()[-1]
    assert server.clients() == []
    assert not list(server.device_folder.glob("run-*"))
    assert eventually(lambda: not server.agents())
