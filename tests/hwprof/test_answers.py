"""A device may answer anything: what comes of it is a checked result or a DeviceError, nothing else."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import subprocess
import time
from pathlib import Path
from typing import Any, cast

import pytest
from agents import ScriptDevice
from hypothesis import given
from hypothesis import strategies as st

from hwprof import answers
from hwprof.client import WAITING_LINES, AgentClient, Group, Output
from hwprof.devices.local import LocalDevice
from hwprof.errors import DeviceError, HwprofError, MeasurementError
from hwprof.target import Plan, Target

PLAN = Plan(sweeps=3, max_sweeps=5)
READY = {
    "event": "ready",
    "identity": {"cpu": "Cortex", "cores": "4"},
    "state": {"kernel": "6.1"},
    "versions": {"hwprof": "1", "fast": "2.0"},
}
RESULT = {
    "event": "result",
    "name": "m",
    "ratio": 1.5,
    "standard_error": 0.01,
    "spread": 0.02,
    "ratios": [1.5, 1.4, 1.6],
    "wall_ms": 3.0,
    "interrupted": 0.0,
    "refused": None,
    "nodes": [["conv", 0.5], ["softmax", 0.25]],
}
DONE = {
    "event": "done",
    "anchor_ms": [2.0, 2.1, 2.0],
    "anchors": {"a": [2.0, 2.1, 2.0]},
    "drift": 0.01,
    "seconds": 1.5,
    "stolen_seconds": 0.0,
    "involuntary_switches": 3,
    "state": {"kernel": "6.1"},
}
GROUP = [
    READY,
    {"event": "waiting", "holder": "process 7 on board for ada@laptop"},
    {"event": "loading", "done": 1},
    {"event": "loading", "done": 2},
    {"event": "sweep", "done": 1},
    {"event": "sweep", "done": 2},
    {"event": "sweep", "done": 3},
    RESULT,
    DONE,
]
OUTPUTS = {"event": "outputs", "outputs": [{"shape": [1, 2], "float32": base64.b64encode(bytes(8)).decode()}]}


class SaidDevice(LocalDevice):
    """Answers these lines, whatever it is asked."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def start_agent(self) -> subprocess.Popen[str]:
        return cast("subprocess.Popen[str]", Said(self._lines))


class Said:
    """As much of a process as a client needs."""

    def __init__(self, lines: list[str]) -> None:
        self.stdin, self.stdout, self.stderr = io.StringIO(), io.StringIO("\n".join(lines) + "\n"), io.StringIO()

    def wait(self, timeout: float | None = None) -> int:
        return 0

    def poll(self) -> int:
        return 0

    def kill(self) -> None: ...


def measure(messages: list[Any], waiting: list[str] | None = None) -> Group:
    """What a client makes of these messages; a text is a line as it is."""
    lines = [message if isinstance(message, str) else json.dumps(message) for message in messages]
    told = waiting if waiting is not None else []
    with AgentClient(SaidDevice(lines), Target(), waiting=told.append) as client:
        return client.measure({"m": Path("m")}, {"a": Path("a")}, PLAN)


def infer(messages: list[Any]) -> list[Output]:
    lines = [message if isinstance(message, str) else json.dumps(message) for message in messages]
    with AgentClient(SaidDevice(lines), Target()) as client:
        return client.infer(Path("m"), [])


def changed(message: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**message, **fields}


def test_the_right_answers_are_read() -> None:
    told: list[str] = []
    group = measure(GROUP, told)
    assert group.results[0].nodes == (("conv", 0.5), ("softmax", 0.25))
    assert group.anchors == {"a": (2.0, 2.1, 2.0)}
    assert told == ["process 7 on board for ada@laptop measures on local: waiting for its turn"]
    assert infer([READY, OUTPUTS]) == [Output((1, 2), bytes(8))]


def test_infinite_errors_are_read_where_a_result_is_refused() -> None:
    broken = changed(RESULT, ratio=0.0, ratios=[0.0] * 3, standard_error=math.inf, spread=math.inf, refused="broken")
    group = measure([READY, broken, changed(DONE, drift=math.inf)])
    assert group.results[0].spread == math.inf
    with pytest.raises(DeviceError, match="inf is not between 0"):
        measure([READY, changed(RESULT, spread=math.inf), DONE])
    with pytest.raises(DeviceError, match="beside anchors of time zero is not refused"):
        measure([READY, RESULT, changed(DONE, drift=math.inf)])


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (changed(RESULT, ratio=math.nan), "not a message: NaN is not a number"),
        (changed(RESULT, ratio=-1.0), "-1.0 is not between 0"),
        (changed(RESULT, ratio=0.0), "a time of zero is not refused"),
        (changed(RESULT, ratio="1"), "'1' is not a number"),
        (changed(RESULT, ratio=True), "'True' is not a number"),
        (changed(RESULT, ratio=10**40), "too many digits"),
        (changed(RESULT, ratio=10**20), "is not between"),
        (changed(RESULT, interrupted=1.5), "1.5 is not between 0 and 1"),
        (changed(RESULT, name="other"), "no model 'other' is still to be measured"),
        (changed(RESULT, name=["m"]), "no model .* is still to be measured"),
        (changed(RESULT, ratios=[1.0]), "not every model and anchor has a time in every sweep"),
        (changed(RESULT, ratios={"0": 1.0}), "is not a list"),
        (changed(RESULT, nodes=[["conv"]]), "a node has a name and a time"),
        (changed(RESULT, nodes=[["conv", -1]]), "-1 is not between 0"),
        (changed(RESULT, refused=3), "'3' is not a text"),
        ({"event": "result"}, "no model 'None' is still to be measured"),
        ({"event": "dance"}, "'dance' is not what comes now"),
        ({"event": "done"}, "'done' is not what comes now"),
        ({"event": "sweep"}, "'None' is not a whole number"),
        ({"event": "sweep", "done": 6}, "6 is not between 1 and 5"),
        ({"event": "sweep", "done": 1.0}, "'1.0' is not a whole number"),
        ({"event": "loading", "done": 3}, "3 is not between 1 and 2"),
        ({"event": "waiting"}, "'None' is not a text"),
        ({"event": 3}, "it is no JSON object with an event"),
        ([1], "it is no JSON object with an event"),
        ("[" * 100_000, "it is no JSON"),
        ("\0", "it is no JSON"),
    ],
)
def test_a_wrong_answer_to_a_group_is_told(message: Any, problem: str) -> None:
    with pytest.raises(DeviceError, match=problem):
        measure([READY, message, DONE])


@pytest.mark.parametrize(
    "messages",
    [
        [{"event": "sweep", "done": 2}, {"event": "sweep", "done": 2}],
        [{"event": "loading", "done": 1}, {"event": "loading", "done": 1}],
        [RESULT, RESULT, DONE],
        [RESULT, changed(DONE, anchors={})],
        [RESULT, changed(DONE, anchors={"a": [1.0]})],
        [RESULT, changed(DONE, anchors={"a": [1, 1, 1], "b": [1, 1, 1]})],
        [RESULT, changed(DONE, state={"x": 1})],
        [RESULT, changed(DONE, state={str(number): "" for number in range(1000)})],
        [RESULT, changed(DONE, involuntary_switches=0.5)],
    ],
)
def test_answers_that_contradict_each_other_are_told(messages: list[Any]) -> None:
    with pytest.raises(DeviceError, match="answered nonsense"):
        measure([READY, *messages])


@pytest.mark.parametrize(
    "output",
    [
        None,
        {"event": "outputs"},
        {"event": "ready"},
        {"event": "outputs", "outputs": [{"shape": [1, 3], "float32": base64.b64encode(bytes(8)).decode()}]},
        {"event": "outputs", "outputs": [{"shape": [-1, -2], "float32": base64.b64encode(bytes(8)).decode()}]},
        {"event": "outputs", "outputs": [{"shape": [2], "float32": "%%%"}]},
        {"event": "outputs", "outputs": [{"shape": [2], "float32": "é"}]},
        {"event": "outputs", "outputs": [{"shape": 2, "float32": "AAAAAAAAAAA="}]},
        {"event": "outputs", "outputs": ["x"]},
    ],
)
def test_wrong_outputs_are_told(output: Any) -> None:
    with pytest.raises(DeviceError):
        infer([READY, output])


@pytest.mark.parametrize("kind", ["annotations", "__name__", "Exception", "KeyboardInterrupt", None, 3, "HwprofError"])
def test_only_our_errors_are_raised_for_a_device(kind: object) -> None:
    with pytest.raises(HwprofError, match=r"out of memory\?\[31m") as raised:
        measure([READY, {"event": "error", "kind": kind, "message": "out of memory\x1b[31m"}])
    assert type(raised.value) is HwprofError
    with pytest.raises(MeasurementError):
        measure([READY, {"event": "error", "kind": "MeasurementError", "message": "x"}])
    with pytest.raises(DeviceError, match="'None' is not a text"):
        measure([READY, {"event": "error", "kind": kind}])


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def damaged(draw: st.DrawFn, messages: list[dict[str, Any]]) -> list[Any]:
    """The messages with one value replaced or left out, at any depth, or a line replaced, repeated or left out."""
    messages = copy.deepcopy(messages)
    number = draw(st.integers(0, len(messages) - 1))
    how = draw(st.sampled_from(["inside", "line", "json", "twice", "out"]))
    if how == "line":
        messages[number] = draw(st.text())  # type: ignore[call-overload]
    elif how == "json":
        messages[number] = draw(ANY)
    elif how == "twice":
        messages.insert(number, messages[number])
    elif how == "out":
        del messages[number]
    else:
        place: Any = messages[number]
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], (dict, list)) and place[key] and draw(st.booleans()):
                place = place[key]
            else:
                break
        if draw(st.booleans()):
            place[key] = draw(ANY)
        else:
            del place[key]
    return messages


@given(damaged(GROUP))
def test_whatever_a_device_answers_to_a_group_is_a_group_or_a_device_error(messages: list[Any]) -> None:
    try:
        group = measure(messages)
    except DeviceError:
        return
    (result,) = group.results
    numbers = [result.ratio, result.wall_ms, result.interrupted, *result.ratios, *group.anchor_ms, group.seconds]
    assert all(map(math.isfinite, numbers))
    assert result.refused is not None or all(map(math.isfinite, (result.spread, result.standard_error, group.drift)))
    assert result.name == "m"
    assert {len(result.ratios), len(group.anchor_ms), len(group.anchors["a"])} == {len(result.ratios)}
    json.dumps(group.state)


@given(damaged([READY, OUTPUTS]))
def test_whatever_a_device_answers_to_inputs_is_outputs_or_a_device_error(messages: list[Any]) -> None:
    try:
        outputs = infer(messages)
    except DeviceError:
        return
    assert all(len(output.data) == 4 * math.prod(output.shape) for output in outputs)


def test_a_line_without_end_and_endless_complaints_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_LINE", 1000)
    endless = "import sys, os\nsys.stderr.write('e' * 10**6)\nwhile True: os.write(1, b'x' * 1000)"
    device = ScriptDevice(endless)
    client = AgentClient(device, Target())
    with pytest.raises(DeviceError, match=r"answered 'xxxx.*', not a message"):
        client.restart()
    assert sum(map(len, client._complaints)) <= 50 * answers.MAX_TEXT
    assert device.started[0].poll() is not None


def test_lines_without_end_stop_the_device_and_not_the_host() -> None:
    script = f"while True: print('''{json.dumps(READY)}''', flush=True)"
    device = ScriptDevice(script)
    with AgentClient(device, Target()) as client:
        time.sleep(0.3)
        assert client._lines.qsize() == WAITING_LINES
        with pytest.raises(DeviceError, match="'ready' is not what comes now"):
            client.measure({}, {}, PLAN)
    assert device.started[0].poll() is not None
