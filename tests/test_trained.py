"""Weights of trained networks: safetensors, and older files of torch, whatever somebody puts in their place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from torch import nn

from hwnas.errors import RunError
from hwnas.run import Run
from hwnas.trained import OLDER_SUFFIX, SUFFIX, load_weights, save_weights, weights_path


def network(width: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Flatten(), nn.Linear(width, 2))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_weights_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / f"net{SUFFIX}"
    save_weights(network(seed=1), path)
    module = network()
    assert not same(module, network(seed=1))
    load_weights(module, path)
    assert same(module, network(seed=1))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert safetensors.torch.load_file(path)["1.num_batches_tracked"].dtype == torch.int64


def test_weights_that_are_shared_or_of_another_order_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        torch.manual_seed(2)
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(2, 2, 3))
        module[1].weight = module[0].weight
        return module.to(memory_format=torch.channels_last)

    save_weights(tied(), tmp_path / f"net{SUFFIX}")
    module = tied()
    with torch.no_grad():
        module[0].weight.zero_()
        module[2].weight.zero_()
    load_weights(module, tmp_path / f"net{SUFFIX}")
    assert same(module, tied())


def test_older_runs_are_read_and_gone_on_with(tmp_path: Path) -> None:
    run = cast(Run, SimpleNamespace(folder=tmp_path, network_name=lambda arch: f"net-{arch[0]}"))
    assert weights_path(run, (1,)) == tmp_path / "weights" / f"net-1{SUFFIX}"
    older = tmp_path / "weights" / f"net-1{OLDER_SUFFIX}"
    older.parent.mkdir()
    torch.save(network(seed=1).state_dict(), older)
    assert weights_path(run, (1,)) == older
    module = network()
    load_weights(module, weights_path(run, (1,)))
    assert same(module, network(seed=1))
    save_weights(network(seed=3), weights_path(run, (1,)))  # trained again
    assert weights_path(run, (1,)).suffix == SUFFIX
    load_weights(module, weights_path(run, (1,)))
    assert same(module, network(seed=3))


def code(path: Path) -> None:
    torch.save({"0.weight": Trap(path.with_name("trapped"))}, path)


def bomb(path: Path) -> None:
    torch.save(network().state_dict(), path.with_name("plain"))
    with zipfile.ZipFile(path.with_name("plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
        packed.writestr("archive/data/99", bytes(10**6))


@pytest.mark.parametrize(
    ("suffix", "write", "why"),
    [
        (SUFFIX, lambda path: path.write_bytes(b""), "SafetensorError"),
        (SUFFIX, lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f{}"), "SafetensorError"),
        (SUFFIX, lambda path: path.write_bytes(bytes(2**24 + 10_000)), "bytes are too many for this network"),
        (SUFFIX, lambda path: save_weights(network(4), path), "size mismatch"),
        (SUFFIX, lambda path: save_weights(nn.Linear(1, 1), path), "Missing key"),
        (SUFFIX, code, "SafetensorError"),
        (SUFFIX, lambda path: None, "FileNotFoundError"),
        (OLDER_SUFFIX, code, "UnpicklingError.*posix.mkdir"),
        (OLDER_SUFFIX, bomb, "larger unpacked than packed"),
        (OLDER_SUFFIX, lambda path: path.write_bytes(b"hello"), "BadZipFile"),
        (OLDER_SUFFIX, lambda path: torch.save([1], path), "TypeError"),
        (OLDER_SUFFIX, lambda path: torch.save(network(4).state_dict(), path), "size mismatch"),
    ],
)
def test_what_cannot_be_used_is_said(suffix: str, write: Callable[[Path], Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    write(path)
    with pytest.raises(RunError, match=rf"(?s)the weights in .*net{suffix} cannot be used \(.*{why}.*--fresh"):
        load_weights(network(), path)
    assert not (tmp_path / "trapped").exists()


def test_a_trap_would_spring(tmp_path: Path) -> None:
    code(tmp_path / "net.pt")
    torch.load(tmp_path / "net.pt", weights_only=False)
    assert (tmp_path / "trapped").is_dir()
