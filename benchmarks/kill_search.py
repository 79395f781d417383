"""Kill a search again and again, and compare what it leaves with a search that nobody killed, trial by trial.

    python benchmarks/kill_search.py RECIPE --kills 20 --seed 0

The recipe's latency table must be there (`hwnas profile RECIPE`). Each time the whole process group gets SIGKILL, at a
random moment or, every other time, as soon as a file changes in the run folder: a checkpoint, the journal, weights,
what a supernet's subnets scored. A search that is through before it was killed so often is followed by another. Each
runs in a new folder. Compared are trials, the front, all weights to the bit, and what subnets scored; the exit code is
1 if one search differs from the uninterrupted one. An uninterrupted search is the same as another only where nothing
depends on the clock: no train.max_seconds, no latency limit that is measured before training, and a supernet that is
trained for epochs, not for minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hwnas.recipe import load_recipe, parse_recipe
from hwnas.run import Run, train_study
from hwnas.search.study import ARCH
from hwnas.space import format_arch
from hwnas.trained import trained_front

_WATCHED = (".checkpoint", ".pt", ".tmp", ".log", ".json", ".safetensors")  # endings of files that a search writes
_FACTS = (ARCH, "parent", "curve", "skipped", "stopped", "reason", "shared_accuracy", "target_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if load_recipe(arguments.recipe).supernet.minutes is not None:
        sys.exit("a supernet that is trained for supernet.minutes is another every time; give it supernet.epochs")
    text = re.sub(r"(?m)^runs\s*=.*\n", "", arguments.recipe.read_text(encoding="utf-8"))
    rng, kills = random.Random(arguments.seed), 0
    print("| search | kills | of them at a random moment | at a change of | trials | equal | front | files |")
    print("|---|---|---|---|---|---|---|---|")
    same, number = True, 0
    with tempfile.TemporaryDirectory(prefix="hwnas-kill-") as folder:
        whole = _recipe(text, Path(folder) / "whole")
        begun = time.monotonic()
        _search(whole).wait()
        seconds, expected = time.monotonic() - begun, _story(whole)
        while kills < arguments.kills:
            number += 1
            killed = _recipe(text, Path(folder) / f"killed{number}")
            moments = _kill(killed, arguments.kills - kills, rng, seconds)
            kills += len(moments)
            found = _story(killed)
            same &= found == expected
            print(f"| {number} | {_row(moments, expected, found)} |", flush=True)
    sys.exit(not same)


def _row(moments: list[str], expected: dict[str, Any], found: dict[str, Any]) -> str:
    places = ", ".join(f"{place} {moments.count(place)}" for place in sorted(set(moments) - {"random"})) or "-"
    equal = sum(one == other for one, other in zip(expected["trials"], found["trials"], strict=False))
    front, files = ("equal" if expected[part] == found[part] else "differs" for part in ("front", "files"))
    total = max(len(expected["trials"]), len(found["trials"]))
    return f"{len(moments)} | {moments.count('random')} | {places} | {total} | {equal} | {front} | {files}"


def _recipe(text: str, folder: Path) -> Path:
    folder.mkdir()
    path = folder / "recipe.toml"
    path.write_text(f'runs = "{folder.as_posix()}"\n{text}', encoding="utf-8")
    return path


def _search(recipe: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "hwnas", "search", str(recipe)]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _kill(recipe: Path, kills: int, rng: random.Random, seconds: float) -> list[str]:
    """Search until it is through, killed `kills` times or less, if it was through before; at which moments."""
    moments: list[str] = []
    while True:
        before, process, begun = _files(recipe.parent), _search(recipe), time.monotonic()
        if len(moments) >= kills:
            if process.wait() != 0:
                sys.exit(f"the search failed; see: hwnas search {recipe}")
            return moments
        pause, place = rng.uniform(0, 0.7 * seconds), "random"
        watched = rng.choice(_WATCHED) if len(moments) % 2 else None
        while process.poll() is None and time.monotonic() - begun < pause + 10 * seconds * (watched is not None):
            time.sleep(0.001)
            if watched and (changed := _files(recipe.parent).items() - before.items()):
                names = {name for name, _ in changed if name.endswith(watched)}
                if names and rng.random() < 0.2:
                    place = watched
                    break
        if process.poll() is not None:
            if process.returncode != 0:
                sys.exit(f"the search failed; see: hwnas search {recipe}")
            return moments
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        moments.append(place)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:
            continue
        found[path.name] = status.st_size, status.st_mtime_ns
    return found


def _story(recipe: Path) -> dict[str, Any]:
    text = recipe.read_text(encoding="utf-8")
    run = Run(parse_recipe(text), text)
    trials = [
        (trial.number, trial.state, trial.values, [trial.user_attrs.get(fact) for fact in _FACTS])
        for trial in train_study(run).get_trials(deepcopy=False)
    ]
    return {"trials": trials, "front": [format_arch(arch) for arch in trained_front(run)], "files": _kept(run.folder)}


def _kept(folder: Path) -> dict[str, str]:
    """By path in the run folder: digests of all weights and of what is known of subnets. Seconds are in other files."""
    kept = [*folder.rglob("*.safetensors"), *(folder / "supernet").glob("*.json")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(kept)}


if __name__ == "__main__":
    main()
