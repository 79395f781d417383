from __future__ import annotations

import logging
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from hwnas.train import checkpoint
from hwnas.train.checkpoint import identity_of, load_checkpoint, read_torch, save_checkpoint

_STATE = {"weights": torch.arange(50_000.0), "stand": {"epoch": 3, "progress": 0.25}}


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "trial.pt"
    assert load_checkpoint(path, "me") is None
    save_checkpoint(path, "me", {"weights": torch.zeros(3)})
    save_checkpoint(path, "me", _STATE)
    state = load_checkpoint(path, "me")
    assert state is not None
    assert torch.equal(state["weights"], _STATE["weights"])
    assert state["stand"] == _STATE["stand"]
    assert [file.name for file in path.parent.iterdir()] == ["trial.pt"]


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "trial.pt"
    save_checkpoint(path, "me", _STATE)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_checkpoint(path, "me", {"weights": torch.zeros(3), "bad": (i for i in range(3))})
    state = load_checkpoint(path, "me")
    assert state is not None
    assert state["stand"]["epoch"] == 3


def test_another_training_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint(tmp_path / "trial.pt", "other", _STATE)
    assert load_checkpoint(tmp_path / "trial.pt", "me") is None
    assert "another network, data set or setting; training starts anew" in caplog.text


@pytest.mark.parametrize("damage", ["empty", "text", "half", "flipped", "pickle"])
def test_a_damaged_file_starts_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    path = tmp_path / "trial.pt"
    save_checkpoint(path, "me", _STATE)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    whole = path.read_bytes()
    path.write_bytes(
        {"empty": b"", "text": b"hello", "half": whole[: len(whole) // 2], "flipped": content}.get(damage, b"")
    )
    if damage == "pickle":
        save_checkpoint(path, "me", {"code": nn.Linear(1, 1)})  # code in a file is never run
    with caplog.at_level(logging.WARNING):
        assert load_checkpoint(path, "me") is None
    assert "cannot be read" in caplog.text


def test_identity_is_of_structure_and_settings_not_of_weights() -> None:
    def net(stride: int = 1, width: int = 2) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, width, 3, stride), nn.BatchNorm2d(width))

    class Odd(nn.Module):
        def extra_repr(self) -> str:
            return repr(object())  # an address: another one in every process

    assert identity_of(net(), 1, "a") == identity_of(net(), 1, "a")
    assert identity_of(Odd(), 1) == identity_of(Odd(), 1)
    others = [identity_of(net(2), 1, "a"), identity_of(net(1, 3), 1, "a"), identity_of(net(), 2, "a")]
    assert len({identity_of(net(), 1, "a"), *others}) == 4


def test_a_file_that_grows_when_it_is_unpacked_is_not_used(tmp_path: Path) -> None:
    torch.save(_STATE, tmp_path / "plain")
    with zipfile.ZipFile(tmp_path / "plain") as plain, zipfile.ZipFile(tmp_path / "bomb", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert read_torch(tmp_path / "plain")["stand"] == _STATE["stand"]
    with pytest.raises(ValueError, match="larger unpacked"):
        read_torch(tmp_path / "bomb")


def test_a_file_of_absurd_size_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trial.pt"
    save_checkpoint(path, "me", _STATE)
    monkeypatch.setattr(checkpoint, "LARGEST_BYTES", path.stat().st_size - 1)
    assert load_checkpoint(path, "me") is None
    assert "at most" in caplog.text
