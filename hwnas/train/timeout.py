"""A limit on the seconds of a training, kept also within an epoch where the system can interrupt a process.

That is by an alarm of the main thread; elsewhere (Windows, other threads) the training is asked after every epoch.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ParamSpec

from hwnas.errors import HwnasError

_P = ParamSpec("_P")

_AGAIN_SECONDS = 0.1  # to look again after an alarm that came while the training was not to be interrupted


class TrainingTimedOut(HwnasError, RuntimeError):
    """A training took longer than it may."""


class TimeLimit:
    """A context manager that raises TrainingTimedOut within itself after `seconds`; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._paused, self._set = False, False
        self._before: Any = None

    def __enter__(self) -> TimeLimit:
        if self._seconds is not None and _alarms():
            self._before, self._set = signal.signal(signal.SIGALRM, self._ring), True
            signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._paused = True
        if self._set:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._before)

    def check(self, seconds: float, where: str) -> None:
        """Raise TrainingTimedOut if `seconds`, of earlier processes too, are more than there are."""
        if self._seconds is not None and seconds > self._seconds:
            raise self._error(where)

    def paused(self, work: Callable[_P, None]) -> Callable[_P, None]:
        """The work, during which no alarm interrupts: a lock that it holds must not stay."""

        def quietly(*args: _P.args, **kwargs: _P.kwargs) -> None:
            self._paused = True
            try:
                work(*args, **kwargs)
            finally:
                self._paused = False

        return quietly

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if not self._paused:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise self._error("in the middle of an epoch")

    def _error(self, where: str) -> TrainingTimedOut:
        return TrainingTimedOut(
            f"still training after {self._seconds:g} s, {where}; raise train.timeout_seconds, or train fewer epochs"
        )


def _alarms() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
