"""Networks are measured before they are trained: a search finds the networks that are predicted too fast.

Among thousands of networks, those whose latency is underestimated look best (the optimiser's curse), so a limit that
predictions keep, measurements may not. A few seconds on the device are nothing beside a training: whoever is above the
limit makes room for the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from hwnas.errors import InfeasibleError, RunError
from hwnas.graphs import write_arch
from hwnas.latency.fastest import FastestPredictor
from hwnas.latency.measure import measure_files
from hwnas.run import Run
from hwnas.saved import numbers_from_text
from hwnas.space import Arch, format_arch, parse_arch
from hwprof.errors import HwprofError
from hwprof.files import write_atomic
from hwprof.lock import Lock

# When so many networks in a row were measured, and all were above the limit, the predictions are not to be trusted.
HOPELESS = 25
_LOCK_SECONDS = 60.0
_ANEW = "delete it, its networks are then measured again"


def above_limit(run: Run, archs: Sequence[Arch], *, measure: bool = True) -> dict[Arch, float]:
    """Those of the architectures that were measured above the latency limit, with their ms.

    Of several precisions, each network is measured in that in which it is predicted to be fastest. What was measured is
    in the run folder, so that a killed search goes on the same way; without `measure` it is all that is looked at. A
    network that could not be measured (refused, no such device here) keeps its prediction. Raises InfeasibleError if
    HOPELESS networks were measured and none keeps the limit, RunError if the record is damaged.
    """
    limit = run.recipe.search.latency
    if limit is None or run.recipe.profile.table is not None:  # a table from elsewhere: searched without the device
        return {}
    path = run.folder / "confirmed.json"
    known = _read(path)
    if not measure:
        archs = [arch for arch in archs if arch in known]
    elif unknown := [arch for arch in archs if arch not in known]:
        found = _measure(run, unknown)
        with Lock(path.with_suffix(".lock"), "it records measurements of this run", wait_seconds=_LOCK_SECONDS):
            known = _read(path) | found  # other processes have measured, too
            write_atomic(path, json.dumps({format_arch(arch): ms for arch, ms in known.items()}) + "\n")
    measured = [ms for ms in known.values() if ms is not None]
    if len(measured) >= HOPELESS and min(measured) > limit:
        raise InfeasibleError(
            f"all {len(measured)} networks were measured above the limit of {limit:g} ms (the fastest took "
            f"{min(measured):.4g} ms), though predicted within it; relax search.latency, set search.confidence, or "
            "profile anew with --fresh"
        )
    return {arch: ms for arch in archs if (ms := known[arch]) is not None and ms > limit}


def _measure(run: Run, archs: Sequence[Arch]) -> dict[Arch, float | None]:
    """ms of each architecture's graph on the table's scale, None where that was not possible."""
    if isinstance(run.predictor, FastestPredictor):
        fastest = run.predictor.fastest(np.array(archs, dtype=np.int64))
        found: dict[Arch, float | None] = {}
        for number, precision in enumerate(run.precisions):
            mine = [arch for arch, one in zip(archs, fastest, strict=True) if one == number]
            found |= _measure(run.at(precision), mine) if mine else {}
        return {arch: found[arch] for arch in archs}
    with TemporaryDirectory(prefix="hwnas-confirm-") as folder:
        files = {
            format_arch(arch): write_arch(run.space, arch, run.target, Path(folder) / run.network_name(arch))
            for arch in archs
        }
        try:
            measured = measure_files(
                files,
                run.space,
                run.table,
                run.device,
                plan=run.plan,
                progress=lambda done, total: run.progress("measure before training", done, total),
            )
        except HwprofError:
            return dict.fromkeys(archs)
    return {arch: None if (one := measured[format_arch(arch)]).refused else one.ms for arch in archs}


def _read(path: Path) -> dict[Arch, float | None]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise RunError(f"{path} is damaged ({error}); {_ANEW}") from error
    return {parse_arch(name): ms for name, ms in numbers_from_text(text, RunError, str(path), _ANEW).items()}
