from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import SOURCES, ScriptDevice, runtime_device, write_model

from hwprof import inventory
from hwprof.agent import serve
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.errors import DeviceError, HwprofError, MeasurementError, RuntimeMissingError, TargetError
from hwprof.runtimes import RUNTIMES, make_runtime
from hwprof.target import Plan, Target, to_json

LOOSE = {"max_standard_error": 1e9, "max_spread": 1e9, "max_drift": 1e9}
PLAN = Plan(sweeps=3, max_sweeps=3, max_runs=4, visit_ms=1.0, **LOOSE)
ENDLESS = Plan(sweeps=100_000, max_sweeps=100_000, **LOOSE)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="module")
def shared_client() -> Iterator[AgentClient]:
    """One agent for all tests that do not kill it: that it serves them all is a part of what they test."""
    with AgentClient(make_device("local"), Target()) as client:
        yield client


@pytest.fixture
def client(shared_client: AgentClient, model: Path) -> Iterator[AgentClient]:
    """An agent that must still measure after the test."""
    process = shared_client._process
    yield shared_client
    assert shared_client.measure({"after": model}, {}, PLAN).results[0].name == "after"
    assert shared_client._process is process


def test_a_group_is_measured(client: AgentClient, model: Path, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "slow.onnx", (1, 4, 96, 96), 5)
    done: list[int] = []
    group = client.measure({"same": model, "slow": slow}, {"anchor": model}, PLAN, nodes=True, progress=done.append)
    same, large = group.results
    assert (same.name, large.name) == ("same", "slow")
    assert large.ratio > same.ratio > 0
    assert same.refused is None
    assert len(same.ratios) == len(group.anchor_ms) == len(group.anchors["anchor"]) == PLAN.sweeps
    assert done == [1, 2, 3]
    assert group.seconds > 0
    assert group.state["python"]
    assert client.fingerprint.keys() >= {"cpu", "cores", "onnxruntime", "provider", "hwprof"}


def test_node_times_are_a_part_of_the_whole(client: AgentClient, tmp_path: Path) -> None:
    slow = write_model(tmp_path / "slow.onnx", (1, 4, 96, 96), 5)
    result = client.measure({"slow": slow}, {"anchor": slow}, PLAN, nodes=True).results[0]
    assert result.nodes is not None
    assert {re.search(r"b\d", name)[0] for name, _ in result.nodes if ":" in name} == {"b0", "b1"}
    assert 0.2 * result.ratio < sum(ratio for _, ratio in result.nodes) < 1.5 * result.ratio


def test_without_anchors_ratios_are_milliseconds(client: AgentClient, model: Path) -> None:
    group = client.measure({"m": model}, {}, PLAN)
    assert group.anchor_ms == (1.0, 1.0, 1.0)
    assert group.results[0].nodes is None
    # CPU time stands in for the wall time where a sweep was interrupted.
    if not group.results[0].interrupted:
        assert group.results[0].ratio == pytest.approx(group.results[0].wall_ms)


def test_an_empty_group_has_no_results(client: AgentClient) -> None:
    assert client.measure({}, {}, PLAN).results == ()


def bad_models(folder: Path) -> dict[str, tuple[Path, str]]:
    (folder / "garbage.onnx").write_bytes(b"\0garbage" * 50)
    (folder / "empty.onnx").write_bytes(b"")
    return {
        "garbage": (folder / "garbage.onnx", "onnxruntime cannot load garbage.onnx"),
        "empty": (folder / "empty.onnx", "cannot load empty.onnx"),
        "missing": (folder / "missing.onnx", "cannot load missing.onnx"),
        "batch": (write_model(folder / "batch.onnx", (8, 4, 9, 9)), "x has batch 8, the target has batch 1"),
        "size": (write_model(folder / "size.onnx", (1, 4, "h", 9)), "only the batch may be dynamic"),
        "channels": (write_model(folder / "channels.onnx", (1, 3, 9, 9)), "cannot (load|run) channels.onnx"),
    }


@pytest.mark.parametrize("kind", ["garbage", "empty", "missing", "batch", "size", "channels"])
@pytest.mark.parametrize("nodes", [False, True])
def test_a_bad_model_is_named_and_the_agent_lives_on(
    client: AgentClient, model: Path, tmp_path: Path, kind: str, nodes: bool
) -> None:
    path, message = bad_models(tmp_path)[kind]
    # The good one is loaded first, and has no profile when the bad one fails: it must not hide the reason.
    with pytest.raises(MeasurementError, match=message):
        client.measure({"good": model, "bad": path}, {"anchor": model}, PLAN, nodes=nodes)


def test_a_dynamic_batch_becomes_the_targets(client: AgentClient, tmp_path: Path) -> None:
    path = write_model(tmp_path / "dynamic.onnx", ("n", 4, 9, 9))
    assert client.measure({"m": path}, {"a": path}, PLAN).results[0].refused is None


def send(client: AgentClient, line: str) -> dict:
    """The answer to any line at all."""
    assert client._process is not None
    assert client._process.stdin is not None
    client._process.stdin.write(line + "\n")
    client._process.stdin.flush()
    return client._receive(20)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("garbage", TargetError, "a job must be one JSON object on a line"),
        ("[1]", TargetError, "a job must be a JSON object, got list"),
        ('{"job": "dance"}', TargetError, "unknown job 'dance'; known: open, group"),
        ("{}", TargetError, "unknown job None"),
        ('{"job": "open"}', HwprofError, "KeyError.*target"),
        ('{"job": "open", "target": 3}', HwprofError, "the job failed with AttributeError"),
        ('{"job": "open", "target": {"batch": true}}', TargetError, "target.batch must be int"),
        ('{"job": "open", "target": {"runtime": "abacus"}}', TargetError, "unknown runtime 'abacus'; known: onnxrunt"),
        ('{"job": "group", "plan": {}}', HwprofError, "KeyError"),
        ('{"job": "group", "plan": {"sweeps": 1}}', TargetError, "3 <= sweeps"),
        ("[" * 100_000, HwprofError, "the job failed with RecursionError"),
    ],
)
def test_a_bad_job_is_answered(client: AgentClient, line: str, error: type[HwprofError], message: str) -> None:
    with pytest.raises(error, match=message):
        send(client, line)


def test_a_group_before_a_target_is_refused_and_empty_lines_are_not_jobs() -> None:
    answers = io.StringIO()
    serve(["\n", '{"job": "group"}\n', "  \n"], answers)
    (answer,) = map(json.loads, answers.getvalue().splitlines())
    assert answer == {"event": "error", "kind": "TargetError", "message": "a job came before a target was opened"}


def test_an_unknown_optimisation_level_is_named(model: Path) -> None:
    message = "no optimisation level 'wild'; it has all, extended, basic, none"
    client = AgentClient(make_device("local"), Target(optimisation="wild"))
    with client, pytest.raises(TargetError, match=message):
        client.measure({"m": model}, {}, PLAN)


def test_a_refused_target_leaves_no_process() -> None:
    device = ScriptDevice()
    client = AgentClient(device, Target(runtime="abacus"))
    with pytest.raises(TargetError, match="unknown runtime 'abacus'"):
        client.restart()
    assert device.started[0].poll() is not None
    client.close()


def test_unknown_names_are_told() -> None:
    with pytest.raises(TargetError, match="unknown device 'moon'; known: local"):
        make_device("moon")
    with pytest.raises(TargetError, match="unknown runtime 'abacus'; known: onnxruntime"):
        make_runtime("abacus")


def test_a_killed_agent_is_told_and_restarts(model: Path) -> None:
    device = ScriptDevice()
    with AgentClient(device, Target()) as client:
        started = threading.Event()

        def kill() -> None:
            started.wait(20)
            device.started[0].kill()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(DeviceError, match=r"the agent on local ended \(exit code -9\): nothing on standard error"):
            client.measure({"m": model}, {"a": model}, ENDLESS, progress=lambda _: started.set())
        thread.join()
        with pytest.raises(DeviceError, match="exit code -9"):
            client.measure({"m": model}, {"a": model}, PLAN)
        client.restart()
        assert client.measure({"m": model}, {"a": model}, PLAN).results[0].refused is None
    assert all(process.poll() is not None for process in device.started)


def test_a_job_is_done_again_when_its_agent_dies_and_others_are_not(model: Path) -> None:
    device, told, attempts = ScriptDevice(), [], []
    with AgentClient(device, Target(), waiting=told.append) as client:
        for number in range(3):

            def job(number: int = number) -> str:
                attempts.append(number)
                if attempts == [0, 1]:
                    device.started[0].kill()
                return client.measure({f"m{number}": model}, {"a": model}, PLAN).results[0].name

            assert client.patiently(job) == f"m{number}"
    assert attempts == [0, 1, 1, 2]
    (news,) = [text for text in told if "waiting for its turn" not in text]  # other tests measure here, too
    assert re.fullmatch(r"the agent on local ended \(exit code -9\): .*; starting it anew", news)


def test_a_job_that_kills_every_agent_is_given_up(model: Path) -> None:
    device = ScriptDevice()
    with AgentClient(device, Target()) as client:

        def job() -> None:
            device.started[-1].kill()
            client.measure({"m": model}, {"a": model}, PLAN)

        with pytest.raises(DeviceError, match="exit code -9"):
            client.patiently(job)
        assert len(device.started) == 3
        client.restart()
        assert client.patiently(lambda: client.measure({"m": model}, {}, PLAN)).results[0].refused is None


def test_other_errors_are_not_waited_for(client: AgentClient, model: Path, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError):
        client.patiently(lambda: client.measure({"m": tmp_path / "missing"}, {}, PLAN))


def test_a_device_that_went_away_is_waited_for_but_not_for_ever(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("hwprof.client.PAUSE_SECONDS", (0.1, 0.2))
    away = tmp_path / "away"
    script = f"import os\nif os.path.exists({str(away)!r}): raise SystemExit('asleep')"
    script += "\nfrom hwprof.agent import main\nmain()"
    device, told = ScriptDevice(script), []
    with AgentClient(device, Target(), waiting=told.append) as client:
        away.touch()
        with pytest.raises(DeviceError, match="asleep"):
            client.restart()
        assert told == []
        with pytest.raises(DeviceError, match="asleep"):
            client.restart(patience_seconds=2)
        assert told
        assert all(re.search(r"asleep; trying again for \d s$", text) for text in told)
        threading.Timer(0.5, away.unlink).start()
        client.restart(patience_seconds=20)
        assert client.measure({"m": model}, {}, PLAN).results[0].refused is None


def test_an_upgraded_device_does_not_go_on(model: Path, tmp_path: Path) -> None:
    device = runtime_device(NOISY, tmp_path)
    with AgentClient(device, Target(runtime="fake")) as client:
        (tmp_path / "fake_runtime.py").write_text(NOISY.replace('{"fake": "1"}', '{"fake": "2"}'))
        with pytest.raises(
            DeviceError, match=r"answers as local is another one than before.*: fake was '1', is '2'; its"
        ):
            client.restart()
        assert client.fingerprint["fake"] == "1"
        assert all(process.poll() is not None for process in device.started)


def test_progress_comes_while_it_happens(model: Path) -> None:
    device = ScriptDevice()
    arrived: list[int] = []

    def stop(done: int) -> None:
        arrived.append(done)
        if done == 3:
            raise KeyboardInterrupt

    with AgentClient(device, Target()) as client, pytest.raises(KeyboardInterrupt):
        client.measure({"m": model}, {"a": model}, ENDLESS, progress=stop)
    assert arrived == [1, 2, 3]
    assert device.started[0].poll() is not None


READY = json.dumps({"event": "ready", "identity": {"cpu": "fast", "cores": "2"}, "state": {}, "versions": {}})


def test_a_silent_agent_is_a_timeout(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    device = ScriptDevice(f"import sys\nprint({READY!r}, flush=True)\nsys.stdin.read()")
    message = "the agent on local said nothing for 0.2 s; check that the device is awake"
    with AgentClient(device, Target(), timeout_seconds=0.2) as client, pytest.raises(DeviceError, match=message):
        client.measure({"m": model}, {}, PLAN)
    monkeypatch.setattr("hwprof.client.STARTUP_SECONDS", 0.2)
    mute = ScriptDevice("import sys\nsys.stdin.read()")
    with pytest.raises(DeviceError, match="said nothing"):
        AgentClient(mute, Target()).restart()
    assert mute.started[0].poll() is not None


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('hello')", "answered 'hello.*', not a message"),
        ("import os; os.close(0); print('hello')", "answered 'hello.*', not a message"),
        ("print('[1]')", "answered .*, not a message"),
        ("print('{}')", "answered .*, not a message"),
        ("raise SystemExit('no such library: libfast')", r"exit code 1\): no such library: libfast"),
        ("import os, time; os.close(1); time.sleep(0.3); os.write(2, b'late words'); os._exit(4)", r"4\): late words"),
        ("import sys; sys.exit(3)", r"ended \(exit code 3\): nothing on standard error"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit code -11"),
    ],
)
def test_an_agent_that_is_none_is_told(script: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        AgentClient(ScriptDevice(script), Target()).restart()


def test_an_interpreter_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DeviceError, match="the agent cannot be started with /nowhere/python"):
        AgentClient(make_device("local"), Target()).restart()


def wait_for_end(process_id: int) -> bool:
    """Whether the process, which is no child of this one, ends within some seconds; zombies have ended."""
    for _ in range(200):
        try:
            if Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_agent_ends_with_its_input() -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    job = json.dumps({"job": "open", "target": to_json(Target())})
    done = subprocess.run(
        [sys.executable, "-m", "hwprof"], input=job, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["event"] == "ready"
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for the orphan in /proc")
@pytest.mark.parametrize("busy", [False, True])
def test_no_agent_outlives_a_killed_host(model: Path, busy: bool) -> None:
    script = f"""
import sys
from pathlib import Path
from hwprof.client import AgentClient
from hwprof.devices import make_device
from hwprof.target import Plan, Target
client = AgentClient(make_device("local"), Target())
client.restart()
def tell(_):
    print(client._process.pid, flush=True)
if not {busy}:
    tell(0)
    sys.stdin.read()
plan = Plan(sweeps=10**6, max_sweeps=10**6, max_standard_error=1e9, max_spread=1e9, max_drift=1e9)
client.measure({{"m": Path({str(model)!r})}}, {{}}, plan, progress=tell)
"""
    environment = {**os.environ, "PYTHONPATH": str(SOURCES)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as host:
        assert host.stdout is not None
        agent = int(host.stdout.readline())
        host.send_signal(signal.SIGKILL)
    assert wait_for_end(agent)


NOISY = """
import os
import sys
from hwprof.errors import MeasurementError
from hwprof.timing import Clock

class Model:
    def __init__(self, name):
        self.name = name
    def run(self):
        print("a stray print")
        os.write(1, b"a stray write\\n")
        if "broken" in self.name:
            raise RuntimeError("out of memory")
        if "fatal" in self.name:
            print("driver fell over", file=sys.stderr)
            os._exit(7)
        sum(range(500))
    def close(self):
        print("closed", file=sys.stderr, flush=True)

class Fake:
    def __init__(self):
        os.write(1, b"licence: yours\\n")
    def versions(self):
        return {"fake": "1"}
    def clock(self, target):
        return Clock(cpu=None)
    def load(self, path, target, *, profile_nodes):
        return Model(path.name)
"""


def test_a_talkative_and_failing_runtime_does_not_break_the_protocol(tmp_path: Path) -> None:
    target = Target(runtime="fake")
    with AgentClient(runtime_device(NOISY, tmp_path), target) as client:
        assert client.fingerprint["fake"] == "1"
        assert client.measure({"m": Path("m")}, {"a": Path("a")}, PLAN).results[0].refused is None
        with pytest.raises(HwprofError, match=r"the job failed with RuntimeError\('out of memory'\)"):
            client.measure({"m": Path("broken")}, {"a": Path("a")}, PLAN)
        assert client.measure({"m": Path("m")}, {"a": Path("a")}, PLAN, nodes=True).results[0].nodes is None
        with pytest.raises(DeviceError, match=r"exit code 7\): .*driver fell over"):
            client.measure({"m": Path("fatal")}, {"a": Path("a")}, PLAN)


def test_a_missing_runtime_says_how_to_install_it(tmp_path: Path) -> None:
    device = runtime_device("import package_that_nobody_has\n", tmp_path)
    client = AgentClient(device, Target(runtime="fake"))
    with pytest.raises(RuntimeMissingError, match=r"fake is not installed.*package_that_nobody_has.*pip install fake"):
        client.restart()
    assert device.started[0].poll() is not None


def test_the_inventory_lists_what_is_ready_and_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, *others = inventory.runtimes_of("local")
    assert ready["state"].startswith("ready: onnxruntime ")
    assert "cores" in ready["machine"]
    assert [ready["runtime"], *(each["runtime"] for each in others)] == list(RUNTIMES)
    cuda = next(each for each in others if each["runtime"] == "torch-cuda")
    assert cuda["state"].startswith("ready: ") or "nvidia-smi" in cuda["state"]
    monkeypatch.setattr(inventory, "make_device", lambda text: ScriptDevice("raise SystemExit('asleep')"))
    (gone,) = inventory.runtimes_of("local")
    assert gone["runtime"] == "any"
    assert "asleep" in gone["state"]
    assert gone["machine"] == "unknown"
    monkeypatch.undo()
    (unknown,) = inventory.inventory(["moon:1"])
    assert "unknown device 'moon'" in unknown["state"]
    assert "local" in inventory.found()


TURNS = """
import os
import time
from hwprof.timing import Clock

class Model:
    def __init__(self, path):
        self.path = path
    def run(self):
        with open(self.path, "a") as file:
            file.write(f"{time.monotonic_ns()} {os.getpid()}\\n")
        time.sleep(0.002)
    def close(self):
        return None

class Fake:
    def versions(self):
        return {"fake": "1"}
    def clock(self, target):
        return Clock(cpu=None)
    def load(self, path, target, *, profile_nodes):
        return Model(path)
"""


def test_two_profiles_on_one_machine_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    device, runs, groups = runtime_device(TURNS, tmp_path), tmp_path / "runs", 3

    def profile() -> None:
        with AgentClient(device, Target(runtime="fake")) as client:
            for _ in range(groups):
                client.measure({"m": runs}, {}, PLAN)

    threads = [threading.Thread(target=profile) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    agents = [line.split()[1] for line in sorted(runs.read_text().splitlines())]
    assert len(set(agents)) == 2
    # While a group is measured, the other agent runs nothing: it is heard again only when a group has ended.
    assert sum(one != other for one, other in itertools.pairwise(agents)) < 2 * groups
