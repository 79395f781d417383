from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hwnas.errors import MissingPackageError
from hwnas.train.scalars import scalar_log


def _points(folder: Path, name: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, round(event.value, 3)) for event in events.Scalars(name)]


def test_a_log_that_goes_on_replaces_what_comes_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason='needs TensorBoard: pip install "hwnas[test]"')
    with scalar_log(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log(step, {"loss": 1 / step, "speed": 9.0})
    with scalar_log(tmp_path, 2) as log:  # the process was killed, and its last checkpoint was of step 2
        for step in (2, 3, 4):
            log(step, {"loss": 10.0 * step})
    assert _points(tmp_path, "loss") == [(1, 1.0), (2, 20.0), (3, 30.0), (4, 40.0)]
    assert _points(tmp_path, "speed") == [(1, 9.0)]


def test_no_folder_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with scalar_log(None, 0) as log:
        log(1, {"loss": 1.0})
    with pytest.raises(MissingPackageError, match="pip install tensorboard"), scalar_log(tmp_path / "log", 0):
        pass
    assert not (tmp_path / "log").exists()
