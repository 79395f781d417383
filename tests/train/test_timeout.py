"""A limit on the seconds of a training."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from hwnas.train.timeout import TimeLimit, TrainingTimedOut

needs_alarms = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no alarms")


def spin() -> None:
    while True:
        time.sleep(0.001)


def test_seconds_of_earlier_processes_count() -> None:
    limit = TimeLimit(10.0)
    limit.check(9.9, "in epoch 1 of 2")
    with pytest.raises(TrainingTimedOut, match=r"still training after 10 s, in epoch 2 of 3; raise train\."):
        limit.check(10.1, "in epoch 2 of 3")
    TimeLimit(None).check(1e9, "in epoch 2 of 3")


@needs_alarms
def test_work_is_interrupted_and_the_alarm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(TrainingTimedOut, match=r"after 0\.05 s, in the middle of an epoch"), TimeLimit(0.05):
        spin()
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@needs_alarms
def test_an_alarm_waits_until_what_must_not_be_interrupted_is_done() -> None:
    done = []

    def slowly() -> None:
        time.sleep(0.2)
        done.append(True)

    def work() -> None:
        with TimeLimit(0.05) as limit:
            limit.paused(slowly)()
            spin()

    with pytest.raises(TrainingTimedOut):
        work()
    assert done == [True]


def test_in_another_thread_there_is_no_alarm() -> None:
    done = []

    def work() -> None:
        with TimeLimit(0.01):
            time.sleep(0.05)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
