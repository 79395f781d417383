"""What one of several processes does: `torchrun shared_training.py FOLDER`; writes what it saw to FOLDER/RANK.json.

Without torchrun it forks two processes that find themselves as torchrun would start them, after the costly imports.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hwnas.train.config import TrainConfig
from hwnas.train.data import ImageData, load_data
from hwnas.train.distributed import average_gradients, connect, from_first, ranks, share, total
from hwnas.train.loop import train

# the images of a group share a draw, which processes must do as well; mixing needs images of other processes
CONFIGS = {
    "plain": TrainConfig(epochs=2, batch_size=15, augment="crop_flip", ema=0.9),
    "mixed": TrainConfig(epochs=2, batch_size=15, augment="randaugment", mix="mixup_cutmix"),
}


class Ended(Exception):
    """What the first process's progress raises."""


def images() -> ImageData:
    """97 training images: batches are not of one size, and most cannot be halved."""
    digits = load_data("digits")
    parts = {f"{a}_{s}": getattr(digits, f"{a}_{s}")[:n] for a in "xy" for s, n in (("train", 97), ("valid", 41))}
    return dataclasses.replace(digits, **parts)


def net(seed: int) -> nn.Module:
    """Without batch normalisation, whose statistics are those of a process."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6 * 16, 10))


def trained(seed: int, config: TrainConfig, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A network trained, and its result."""
    module = net(seed)
    result = dataclasses.asdict(train(module, images(), 8, config, **options))
    return module, {name: value for name, value in result.items() if name != "seconds"}


def weights(module: nn.Module) -> list[float]:
    """All weights of the network in a row."""
    return torch.cat([value.flatten() for value in module.state_dict().values()]).tolist()


def gradients(alike: bool) -> list[list[float] | None]:
    """Averaged gradients of three parameters: one that all use, one that only the last process does, one unused."""
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    parameters[0].grad = torch.tensor([1.0, 2.0]) * (1 + ranks().index)
    if not alike and ranks().index == 1:
        parameters[1].grad = torch.tensor([3.0, 4.0])
    average_gradients(parameters, 0.25 + 0.5 * ranks().index, alike=alike)
    return [None if parameter.grad is None else parameter.grad.tolist() for parameter in parameters]


def work(folder: Path) -> None:
    connect(torch.device("cpu"))
    mine = ranks()
    told: list[int] = []
    found: dict[str, Any] = {
        "ranks": [mine.index, mine.count],
        "share": share(torch.arange(5)).tolist(),
        "total": total(torch.tensor(1 + mine.index)).item(),
        "from_first": from_first({"rank": mine.index}),
        "gradients": {str(alike): gradients(alike) for alike in (True, False)},
    }

    def stop(epoch: int, *_: Any) -> None:
        if epoch == 1:
            raise Ended("enough")

    # other weights in every process, as nobody promised the same; the checkpoint is the first one's
    path = folder / "training.checkpoint"
    try:
        trained(7 * mine.index, CONFIGS["plain"], checkpoint=path, progress=stop)
    except Exception as error:
        found["ended"] = f"{type(error).__name__}: {error}"
    for name, config in CONFIGS.items():
        own: dict[str, Any] = {"checkpoint": path} if name == "plain" else {}
        module, result = trained(7 * mine.index, config, progress=lambda epoch, *_: told.append(epoch), **own)
        found[name] = {"weights": weights(module), "result": result}
    found["told"] = told
    try:
        trained(0, dataclasses.replace(CONFIGS["plain"], batch_size=3))
    except Exception as error:
        found["refused"] = str(error)
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    train(module, images(), 8, TrainConfig(epochs=1, batch_size=15))
    found["normalised"] = weights(module)
    (folder / f"{mine.index}.json").write_text(json.dumps(found), encoding="utf-8")


def main() -> None:
    if "RANK" in os.environ:
        work(Path(sys.argv[1]))
        return
    with socket.socket() as free:
        free.bind(("localhost", 0))
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    children = []
    for rank in ("0", "1"):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
            try:
                work(Path(sys.argv[1]))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


if __name__ == "__main__":
    main()
