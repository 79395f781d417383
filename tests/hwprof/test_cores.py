from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from agents import SOURCES

from hwprof import cores
from hwprof.target import Target, to_json

PHONE = {core: size for cpus, size in (((0, 1, 2, 3), 300), ((4, 5), 750), ((6, 7), 1024)) for core in cpus}


def write_cores(root: Path, sizes: dict[int, int], name: str = "cpu_capacity") -> Path:
    for core, size in sizes.items():
        path = root / f"cpu{core}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{size}\n")
    return root


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
@pytest.mark.parametrize(
    ("sizes", "threads", "expected"),
    [
        (PHONE, 1, (7,)),
        (PHONE, 2, (6, 7)),
        (PHONE, 3, (5, 6, 7)),
        (PHONE, 7, (1, 2, 3, 4, 5, 6, 7)),
        (PHONE, 8, ()),
        (PHONE, 16, ()),
        ({0: 1024, 1: 1024, 2: 300, 3: 300}, 1, (1,)),
        (dict.fromkeys(range(8), 1024), 1, ()),
        ({0: 4500, 1: 4700, 2: 4500}, 1, ()),  # a preferred core of a server
        ({0: 0, 1: 1024}, 1, ()),
        ({0: 1024}, 1, ()),
        ({}, 1, ()),
    ],
)
def test_as_many_of_the_biggest_cores_as_there_are_threads(
    tmp_path: Path, name: str, sizes: dict[int, int], threads: int, expected: tuple[int, ...]
) -> None:
    assert cores.biggest(threads, sizes, write_cores(tmp_path, sizes, name)) == expected


def test_only_cores_that_may_be_used_count(tmp_path: Path) -> None:
    assert cores.biggest(1, (0, 1, 4), write_cores(tmp_path, PHONE)) == (4,)
    assert cores.biggest(1, (0, 1), tmp_path) == ()
    assert cores.biggest(1, (0, 9), tmp_path) == ()  # one that the kernel does not describe


def test_clocks_count_where_capacities_are_not_known_of_all(tmp_path: Path) -> None:
    write_cores(tmp_path, {0: 1024}, "cpu_capacity")
    write_cores(tmp_path, {0: 2000000, 1: 3000000}, "cpufreq/cpuinfo_max_freq")
    assert cores.biggest(1, (0, 1), tmp_path) == (1,)
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("unknown")
    assert cores.biggest(1, (0, 1), tmp_path) == ()


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores and Linux"
)
def test_the_agent_keeps_to_the_biggest_cores_and_says_so(tmp_path: Path) -> None:
    """A whole agent on a processor of two kinds of cores; another target moves it."""
    small, *_, big = sorted(os.sched_getaffinity(0))
    root = write_cores(tmp_path, {**dict.fromkeys(os.sched_getaffinity(0), 1000), small: 500, big: 2000})
    (root / f"cpu{big}" / "cpufreq").mkdir()
    (root / f"cpu{big}" / "cpufreq" / "scaling_governor").write_text("performance")
    script = f"from pathlib import Path; from hwprof import agent, cores; cores.CPUS = Path({str(root)!r})\n"
    script += "cores.biggest.__defaults__ = (cores.ALLOWED, cores.CPUS)\nagent.main()"
    every = len(os.sched_getaffinity(0))
    jobs = [{"job": "open", "target": to_json(Target(threads=threads))} for threads in (1, every)]
    ran = subprocess.run(
        [sys.executable, "-c", script],
        input="".join(f"{json.dumps(job)}\n" for job in jobs),
        env={**os.environ, "PYTHONPATH": str(SOURCES)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    pinned, free = (json.loads(line)["identity"] for line in ran.stdout.splitlines())
    assert (pinned["pinned_cores"], pinned["governor"], pinned["cores"]) == (str(big), "performance", str(every))
    assert "pinned_cores" not in free
    assert free["cores"] == str(every)
