"""Finalists are measured before they are trained: a search finds the networks that are predicted too fast.

Among thousands of networks, those whose latency is underestimated look best (the optimiser's curse), so a limit that
predictions keep, measurements may not. A few seconds on the device are nothing beside a training: whoever is above the
limit makes room for the next.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hwnas.errors import InfeasibleError, RunError
from hwnas.graphs import write_arch
from hwnas.latency.measure import measure_files
from hwnas.run import Run
from hwnas.space import Arch, format_arch, parse_arch
from hwprof.errors import HwprofError
from hwprof.files import write_atomic

# Choosing and measuring, at most so often.
ROUNDS = 5


def confirmed(run: Run, choose: Callable[[set[Arch]], list[Arch]]) -> list[Arch]:
    """The finalists that `choose` gives, given those that it must not, all measured within the latency limit.

    What was measured is in the run folder, so that a killed search goes on the same way. A network that could not be
    measured (refused, no such device here) keeps its prediction. Raises what `choose` raises, InfeasibleError if all
    were above the limit, RunError if the record is damaged.
    """
    limit = run.recipe.search.latency
    if limit is None or run.recipe.profile.table is not None:  # a table from elsewhere: searched without the device
        return choose(set())
    known = _read(run.folder / "confirmed.json")
    for _ in range(ROUNDS):
        finalists = choose({arch for arch, ms in known.items() if ms is not None and ms > limit})
        unknown = [arch for arch in finalists if arch not in known]
        if not unknown:
            return finalists
        known |= _measure(run, unknown)
        write_atomic(
            run.folder / "confirmed.json", json.dumps({format_arch(arch): ms for arch, ms in known.items()}) + "\n"
        )
    kept = [arch for arch in finalists if (ms := known[arch]) is None or ms <= limit]
    if not kept:
        fastest = min(ms for ms in known.values() if ms is not None)
        raise InfeasibleError(
            f"all {len(known)} finalists were measured above the limit of {limit:g} ms (the fastest took {fastest:.4g} "
            "ms), though predicted within it; relax search.latency, set search.confidence, or profile anew with --fresh"
        )
    return kept


def _measure(run: Run, archs: Sequence[Arch]) -> dict[Arch, float | None]:
    """ms of each architecture's graph on the table's scale, None where that was not possible."""
    with TemporaryDirectory(prefix="hwnas-confirm-") as folder:
        files = {
            format_arch(arch): write_arch(run.space, arch, run.target, Path(folder) / run.network_name(arch))
            for arch in archs
        }
        stage = "measure finalists"
        try:
            measured = measure_files(
                files,
                run.space,
                run.table,
                run.device,
                plan=run.plan,
                progress=lambda done, total: run.progress(stage, done, total),
            )
        except HwprofError:
            return dict.fromkeys(archs)
    return {arch: None if (one := measured[format_arch(arch)]).refused else one.ms for arch in archs}


def _read(path: Path) -> dict[Arch, float | None]:
    try:
        return {parse_arch(name): ms for name, ms in json.loads(path.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it, its networks are then measured again") from error
