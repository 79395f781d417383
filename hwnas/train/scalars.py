"""What TensorBoard shows of a training: one point per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from hwnas.errors import MissingPackageError


@contextmanager
def scalar_log(folder: Path | None, first: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A function (step, {name: value}) that writes; steps from `first` on replace those of an earlier process.

    Without a folder it does nothing. Raises MissingPackageError where TensorBoard is not installed.
    """
    if folder is None:
        yield lambda step, values: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("a log of the training needs TensorBoard: pip install tensorboard") from error
    with SummaryWriter(str(folder), purge_step=first) as writer:

        def write(step: int, values: Mapping[str, float]) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()  # the process may be killed

        yield write
