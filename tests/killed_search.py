"""A search that dies at chosen moments until it is through: `python killed_search.py RECIPE SEED KILLS`.

Every search is a forked process, so that none pays for the imports, and dies as by SIGKILL: nothing is cleaned up, its
locks stay, its last line may be half written. Prints the places of the deaths and what the search left, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from toy_runs import story, toy_run

import hwnas.train.loop as loop
from hwnas.pipeline import search_stage
from hwnas.search.journal import _Backend

CODES = {
    "before a line": 41,
    "half a line": 42,
    "after a line": 43,
    "file unfinished": 44,
    "file there": 45,
    "epoch": 46,
}


class Moments:
    """The moments at which a process may die; it dies at the last of `left`."""

    def __init__(self, left: int) -> None:
        self.left = left

    def due(self) -> bool:
        self.left -= 1
        return self.left == 0

    def pass_(self, place: str) -> None:
        if self.due():
            os._exit(CODES[place])

    def install(self) -> None:
        """Watch the journal, the files that are renamed when they are complete, and the epochs."""
        append, replace, evaluate = _Backend.append_logs, Path.replace, loop.evaluate

        def appending(backend: Any, logs: list[dict[str, Any]]) -> None:
            self.pass_("before a line")
            if self.due():
                with backend._locked(), backend._path.open("ab") as file:
                    file.write(json.dumps(logs[0]).encode()[: len(json.dumps(logs[0])) // 2])
                    file.flush()
                    os._exit(CODES["half a line"])
            append(backend, logs)
            self.pass_("after a line")

        def replacing(path: Path, target: Path) -> Path:
            self.pass_("file unfinished")
            found = replace(path, target)
            self.pass_("file there")
            return found

        def evaluating(*arguments: Any, **named: Any) -> float:
            self.pass_("epoch")
            return evaluate(*arguments, **named)

        _Backend.append_logs, Path.replace, loop.evaluate = appending, replacing, evaluating  # type: ignore


def main() -> None:
    text, seed, kills = Path(sys.argv[1]).read_text(encoding="utf-8"), int(sys.argv[2]), int(sys.argv[3])
    rng, deaths = random.Random(seed), []
    while True:
        child = os.fork()
        if child == 0:
            try:
                if len(deaths) < kills:
                    Moments(rng.randint(1, 60)).install()
                search_stage(toy_run(text))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        rng.random()  # the child drew from a copy
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        deaths.append(next(place for place, each in CODES.items() if each == code))
    print(json.dumps({"deaths": Counter(deaths), **story(toy_run(text))}))  # noqa: T201


if __name__ == "__main__":
    main()
