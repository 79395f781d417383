from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from hwnas.errors import RunError
from hwnas.report.summary import Candidate, NetworkRow, RunSummary

NAN = float("nan")


def test_json_gives_back_the_same_summary(summary: RunSummary) -> None:
    again = RunSummary.from_json(summary.to_json())
    assert again == summary
    kinds = [type(option) for option in again.networks[0].choice.values()]
    assert kinds == [int, int, float, str]


def test_text_that_ascii_does_not_hold_stays_readable(summary: RunSummary) -> None:
    text = replace(summary, name="Pfirsich-桃").to_json()
    assert "Pfirsich-桃" in text
    assert RunSummary.from_json(text).name == "Pfirsich-桃"


def changed(summary: RunSummary, path: tuple[str | int, ...], value: Any) -> str:
    data = json.loads(summary.to_json())
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("recipe",), KeyError),
        (("recipe",), None),
        (("version",), 1),
        (("surprise",), 1),
        (("networks",), {}),
        (("networks", 1, "accuracy"), "91"),
        (("networks", 1, "accuracy"), NAN),
        (("networks", 1, "macs"), 1.5),
        (("networks", 1, "macs"), KeyError),
        (("networks", 1, "colour"), "red"),
        (("networks", 0, "choice", "activation"), None),
        (("networks", 0, "choice", "activation"), NAN),
        (("networks", 0, "within_limit"), 1),
        (("candidates", 2, "scores", "naswot"), float("inf")),
        (("candidates", 2, "scores", "naswot"), None),
        (("target", "threads"), [1]),
        (("limits", "latency_ms"), "1 ms"),
        (("table", "mean_error"), NAN),
        (("table", "rows"), KeyError),
        (("seconds", "profile"), NAN),
        (("warnings", 0), 3),
    ],
)
def test_a_bad_key_is_named(summary: RunSummary, path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(RunError) as caught:
        RunSummary.from_json(changed(summary, path, value), "runs/x/summary.json")
    assert "runs/x/summary.json" in str(caught.value)
    assert ".".join(str(key) for key in path) in str(caught.value)


def test_nan_deep_in_the_space_is_refused(summary: RunSummary) -> None:
    with pytest.raises(RunError, match="space"):
        RunSummary.from_json(changed(summary, ("space", "config", "width"), NAN))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_what_is_no_summary_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="the whole text"):
        RunSummary.from_json(text)


def test_nan_is_not_saved(summary: RunSummary) -> None:
    bad = Candidate(arch="0-1", scores={"naswot": NAN}, predicted_ms=1.0, valid_accuracy=None)
    with pytest.raises(RunError, match=r"candidates\.0\.scores\.naswot"):
        replace(summary, candidates=(bad,)).to_json()


def test_error_is_relative_to_the_measurement(row_of: Callable[..., NetworkRow]) -> None:
    assert row_of(0, predicted_ms=1.1, measured_ms=1.0).error == pytest.approx(0.1)
    assert row_of(0, predicted_ms=0.9, measured_ms=1.0).error == pytest.approx(-0.1)
    assert row_of(0, measured_ms=None, refused="drift").error is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measured_ms": None}, "reason why"),
        ({"measured_ms": None, "refused": ""}, "reason why"),
        ({"refused": "drift"}, "reason why"),
        ({"measured_ms": 0.0}, "above 0"),
        ({"file": "/tmp/net.onnx"}, "relative"),
        ({"file": "export\\net.onnx"}, "relative"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(
    row_of: Callable[..., NetworkRow], summary: RunSummary, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RunError, match=message) as caught:
        row_of(3, **changes)
    assert "net-3" in str(caught.value)
    text = json.loads(summary.to_json())
    text["networks"][3].update(changes)
    with pytest.raises(RunError, match=message):
        RunSummary.from_json(json.dumps(text))
