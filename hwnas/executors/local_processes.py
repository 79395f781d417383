"""Several processes of this machine; on one with GPUs, each with a share of one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from multiprocessing.connection import Connection

import torch

from hwnas.executors.job import Job, job_of, threads_each, work
from hwnas.executors.supervise import Ending, supervise
from hwnas.run import Run
from hwnas.scoring import cores

_STOP_SECONDS = 10.0


def search_in_processes(run: Run) -> None:
    """Train the networks of a run in `search.workers` processes; None: one for each core, or share of a GPU."""
    section = run.recipe.search
    places = int(torch.cuda.device_count() / section.gpus) if section.gpus else cores()
    workers = section.workers or max(1, places)
    supervise(run, LocalProcesses(job_of(run, workers)), workers)


class LocalProcesses:
    """A fleet of spawned processes: a forked one that uses torch's threads can hang."""

    def __init__(self, job: Job) -> None:
        self._job, self._context = job, multiprocessing.get_context("spawn")
        self._running: dict[int, tuple[multiprocessing.process.BaseProcess, Connection]] = {}

    def start(self, number: int) -> None:
        receiver, sender = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_begin, args=(self._job, number, sender), name=f"worker {number}")
        process.start()
        sender.close()
        self._running[number] = process, receiver

    def ended(self, number: int) -> Ending | None:
        process, receiver = self._running[number]
        if process.is_alive():
            return None
        process.join()
        told: Ending | None = None
        with receiver, contextlib.suppress(EOFError, OSError):
            if receiver.poll():
                told = receiver.recv()
        code = process.exitcode or 0
        return told or Ending(died=f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}")

    def stop(self) -> None:
        for process, _ in self._running.values():
            process.terminate()
        for process, _ in self._running.values():
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()


def _begin(job: Job, number: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    if job.gpus and (gpu := _gpu_of(number, job.gpus)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # read when CUDA is first used
    try:
        sender.send(Ending(error=work(job, threads_each(job.workers))))
    except Exception as error:
        sender.send(Ending(died=f"{type(error).__name__}: {error}"))


def _gpu_of(number: int, share: float) -> str | None:
    """The GPU, by its name for CUDA, that a worker has its share of; None if there is none."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(each) for each in range(torch.cuda.device_count())]
    return names[int(number * share) % len(names)] if names else None


def _end_with_the_parent() -> None:
    """A parent that is killed cannot tell its processes to end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
