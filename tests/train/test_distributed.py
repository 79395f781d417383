"""Two processes over gloo train as one does; what each of them saw comes as JSON from `shared_training.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_training import CONFIGS, gradients, net, trained, weights

from hwnas.train.distributed import Ranks, connect, from_first, ranks, share, total

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes reports."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-W", "error", str(HERE / "shared_training.py"), str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert connect(torch.device("cpu")) == torch.device("cpu")
    assert ranks() == Ranks(0, 1)
    assert ranks().first
    assert share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert total(torch.tensor(3)).item() == from_first(3) == 3
    assert gradients(True) == [[1.0, 2.0], None, None]  # whatever its weight


def test_what_processes_exchange(seen: list[dict[str, Any]]) -> None:
    first, second = seen
    assert (first["ranks"], second["ranks"]) == ([0, 2], [1, 2])
    assert (first["share"], second["share"]) == ([0, 1, 2], [3, 4])
    assert first["total"] == second["total"] == 3
    assert first["from_first"] == second["from_first"] == {"rank": 0}


def test_gradients_are_weighted_and_unused_parameters_stay_without(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        assert found["gradients"]["True"] == [[1.75, 3.5], None, None]
        assert found["gradients"]["False"] == [[1.75, 3.5], [2.25, 3.0], None]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_processes_train_as_one_does(seen: list[dict[str, Any]], name: str) -> None:
    module, result = trained(0, CONFIGS[name])
    first, second = (found[name] for found in seen)
    assert first == second
    assert first["weights"] == pytest.approx(weights(module), abs=1e-5)
    assert first["weights"] != pytest.approx(weights(net(0)), abs=1e-2)
    assert first["result"] == pytest.approx(result, rel=1e-5)


def test_only_the_first_tells_and_all_end_with_it(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["told"] == [1, 2, 1, 2]  # the first epoch of the resumed training was told again
    assert seen[1]["told"] == []
    assert seen[0]["ended"] == "Ended: enough"
    assert seen[1]["ended"] == "TrainingFailed: the first process ended the training: Ended: enough"


def test_too_many_processes_are_refused(seen: list[dict[str, Any]]) -> None:
    for found in seen:
        assert "2 processes cannot share batches of 2 images" in found["refused"]


def test_statistics_of_batch_normalisations_are_the_same_in_all(seen: list[dict[str, Any]]) -> None:
    assert seen[0]["normalised"] == seen[1]["normalised"]
