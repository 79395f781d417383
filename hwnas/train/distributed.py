"""Several processes that train one network together, started by torchrun; without it, all this is one process.

    torchrun --nproc_per_node 4 script.py          # script.py calls hwnas.train.loop.train, and every process does

Every process holds the whole data set and the same weights, and works on its share of each batch. What it adds up to
is the gradient of the whole batch, so all of them take the same step, that of a single process up to rounding. But
for batch normalisation: its statistics in training are those of a process's own share, as in PyTorch's
DistributedDataParallel without SyncBatchNorm; running statistics are averaged over the processes after every epoch.

DistributedDataParallel itself expects that every step uses every parameter; a supernet's does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

_Value = TypeVar("_Value")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and tells of progress."""
        return self.index == 0


def ranks() -> Ranks:
    """This process among those that `connect` found; alone unless it did."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def connect(device: torch.device) -> torch.device:
    """Join the other processes if torchrun started this one, over gloo on a CPU and NCCL on GPUs; once is enough.

    Returns this process's device: of GPUs without a number, the one of its local rank. The connection stays for the
    life of the process; one that exists already is used.
    """
    if any(name not in os.environ for name in _TORCHRUN) or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.type == "cuda":
        if str(device) == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def share(batch: Tensor) -> Tensor:
    """The part of a batch, nearly equal ones along the first axis, that this process works on."""
    mine = ranks()
    return batch.tensor_split(mine.count)[mine.index]


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes, in place."""
    if ranks().count > 1:
        dist.all_reduce(value)
    return value


def from_first(value: _Value) -> _Value:
    """What the first process gives, which anything picklable may be; every process must ask."""
    if ranks().count == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def average_gradients(parameters: Iterable[nn.Parameter], weight: float, *, alike: bool = True) -> None:
    """Make every gradient that of the whole batch: the sum over processes of weight * gradient.

    `weight` is the share of the batch, in [0, 1], over which this process took the mean of the loss. The parameters
    and their order are the same in every process; those without a gradient anywhere stay so. `alike`: the processes
    used the same parameters, as they do unless a supernet's draw is not shared; if not, first they agree on which.
    """
    if ranks().count == 1:
        return
    weights = [parameter for parameter in parameters if parameter.requires_grad]
    if not alike and weights:
        used = torch.tensor([weight.grad is not None for weight in weights], dtype=torch.uint8)
        used = used.to(weights[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, somewhere in zip(weights, used.tolist(), strict=True):
            if somewhere and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
    _sum_flat([parameter.grad for parameter in weights if parameter.grad is not None], weight)


def average_statistics(module: nn.Module) -> None:
    """Make running statistics of batch normalisations, and other buffers of floats, their mean over the processes."""
    if (count := ranks().count) > 1:
        _sum_flat([buffer for buffer in module.buffers() if buffer.is_floating_point()], 1 / count)


def take_from_first(module: nn.Module) -> None:
    """Give every process the weights and buffers of the first."""
    if ranks().count > 1:
        for value in module.state_dict().values():
            sent = value.contiguous()  # in the layout channels_last it cannot be sent
            dist.broadcast(sent, src=0)
            value.copy_(sent)


def _sum_flat(tensors: list[Tensor], weight: float) -> None:
    """Sum weight * tensor over the processes, in place; one message for each type of number."""
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        same = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in same]).mul_(weight)
        dist.all_reduce(flat)
        for tensor, summed in zip(same, torch.split(flat, [tensor.numel() for tensor in same]), strict=True):
            tensor.copy_(summed.view_as(tensor))
