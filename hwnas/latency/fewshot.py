"""A predictor for a device of which only totals of a few whole networks are known.

The prior is what the latency tables of other devices predict for the space (`transfer.py`). What was measured is kept
as a latency table without rows: its models are the measured networks, its provenance names the source tables and the
seed, from which the same predictor follows again.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwnas import __version__
from hwnas.errors import MissingRowError, PredictorError
from hwnas.latency.index import BlockIndex
from hwnas.latency.pool import Pool
from hwnas.latency.predict import TablePredictor, require_space
from hwnas.latency.shots import choose_shots
from hwnas.latency.transfer import TransferModel, TransferPrior, fit_transfer, learn_prior
from hwnas.space import Arch, IntMatrix, SearchSpace, format_arch, parse_arch, rows_of, unique_archs
from hwprof.errors import TableError
from hwprof.table import LatencyTable, Model, read_table
from hwprof.target import Target

FloatVector = NDArray[np.float64]

POOL = 2000
# Where the source tables are looked up again, and what of the provenance says that a table is of this kind.
TRANSFER = "transfer"
_AGAIN = "run: hwnas transfer RECIPE"


@dataclass(frozen=True)
class Sources:
    """Latency tables of other devices that hold every block of the space, by path."""

    predictors: Mapping[Path, TablePredictor]

    def predict_ms(self, archs: IntMatrix) -> NDArray[np.float64]:
        """(n, slots) -> (n, sources)."""
        columns = [predictor.predict_ms(archs) for predictor in self.predictors.values()]
        return np.stack(columns, axis=1) if columns else np.empty((len(archs), 0))

    def pool(self, space: SearchSpace, archs: IntMatrix) -> Pool:
        """The architectures with what the sources predict for them."""
        names = tuple(path.as_posix() for path in self.predictors)
        return Pool(archs, space.cardinalities, self.predict_ms(archs), names)


def read_sources(space: SearchSpace, paths: Sequence[Path]) -> Sources:
    """Read source tables. Raises TableError or MissingRowError, naming the table, for one that does not serve."""
    found = {}
    for path in paths:
        table = read_table(path)
        if TRANSFER in table.provenance:
            raise TableError(f"{path} was itself made by a transfer; name the tables that were measured")
        try:
            found[path] = TablePredictor(space, table)
        except (MissingRowError, PredictorError) as error:
            raise type(error)(f"the source table {path} does not serve: {error}") from error
    return Sources(found)


def find_sources(space: SearchSpace, folder: Path) -> Sources:
    """Every table below the folder that holds all blocks of the space."""
    found: dict[Path, TablePredictor] = {}
    for path in sorted(folder.rglob("*.json")):
        # A table of another space, or no table, is not a source.
        with contextlib.suppress(TableError, MissingRowError, PredictorError):
            found |= read_sources(space, [path]).predictors
    return Sources(found)


def learn(space: SearchSpace, sources: Sources, seed: int, measured: Sequence[Arch] = ()) -> TransferPrior:
    """The prior of the space on a new device: a pool of random networks, those `measured` first."""
    rng = np.random.default_rng(seed)
    given = np.array(measured, dtype=np.int64).reshape(-1, len(space.slots))
    archs = unique_archs(np.concatenate([space.canonical(given), space.sample(POOL, rng)]))
    return learn_prior(sources.pool(space, archs), rng)


def networks_to_measure(
    space: SearchSpace, sources: Sources, shots: int, seed: int, measured: Sequence[Arch] = ()
) -> list[Arch]:
    """The `shots` networks that tell most about the space on a new device, most telling first."""
    prior = learn(space, sources, seed, measured)
    known = _rows(prior, measured)
    rows = choose_shots(prior, shots, np.random.default_rng(seed), known)
    return rows_of(prior.pool.archs[rows])


class TransferPredictor:
    """Latency in ms of a space's architectures on a device of which a few whole networks were measured.

    Raises PredictorError if nothing was measured or the networks are of another space.
    """

    additive = False

    def __init__(self, space: SearchSpace, table: LatencyTable, sources: Sources) -> None:
        self.space, self.table, self._sources = space, table, sources
        self.index = BlockIndex(space)
        require_space(space, table)
        if not table.models:
            raise PredictorError("no network was measured on the new device; measure some, see: hwnas transfer --help")
        measured = [space.check(parse_arch(model.name)) for model in table.models]
        prior = learn(space, sources, _origin(table).seed, measured)
        self._model: TransferModel = fit_transfer(prior, _rows(prior, measured), [model.ms for model in table.models])

    def predict_ms(self, archs: IntMatrix) -> FloatVector:
        """(n, slots) int -> (n,) latency in ms."""
        return self._model.predict_ms(self._pool(archs))

    def interval_ms(self, archs: IntMatrix, confidence: float = 0.9) -> tuple[FloatVector, FloatVector]:
        """(n, slots) int -> two (n,): bounds in ms that hold the measured latency with the given confidence."""
        return self._model.interval_ms(confidence, self._pool(archs))

    def upper_ms(self, archs: IntMatrix, confidence: float) -> FloatVector:
        """(n, slots) int -> (n,): what the measured latency stays below with the given confidence."""
        return self._model.upper_ms(confidence, self._pool(archs))

    def _pool(self, archs: IntMatrix) -> Pool:
        return self._sources.pool(self.space, self.space.canonical(archs))


def make_predictor(space: SearchSpace, table: LatencyTable, folder: Path) -> TablePredictor | TransferPredictor:
    """The predictor of a table of either kind; `folder` is the table's, which paths of source tables start from.

    Raises TableError if a source table is gone or has changed since.
    """
    if TRANSFER not in table.provenance:
        return TablePredictor(space, table)
    paths = []
    for relative, sha256 in _origin(table).sources:
        paths.append(folder / relative)
        if paths[-1].is_file() and _digest(paths[-1]) != sha256:
            raise TableError(f"the source table {paths[-1]} has changed since the transfer; run: hwnas transfer RECIPE")
    return TransferPredictor(space, table, read_sources(space, paths))


@dataclass(frozen=True)
class _Origin:
    """What a transfer is made again from: `sources` are relative paths and SHA-256 of tables."""

    seed: int
    sources: tuple[tuple[str, str], ...]


def _origin(table: LatencyTable) -> _Origin:
    """Where the table's provenance says that a transfer is from. Raises TableError if it does not say it."""
    said = table.provenance[TRANSFER]
    try:
        seed, sources = said["seed"], tuple((source["path"], source["sha256"]) for source in said["sources"])
    except (TypeError, KeyError) as error:
        raise TableError(f"the latency table lacks a part of its transfer ({error!r}); {_AGAIN}") from error
    for path, _ in sources:
        if not isinstance(path, str) or "\0" in path or Path(path).is_absolute():
            raise TableError(f"the latency table names the source {str(path)[:100]!r}, no relative path; {_AGAIN}")
    if type(seed) is not int or seed < 0:
        raise TableError(f"the latency table's transfer has the seed {str(seed)[:100]!r}, no whole number; {_AGAIN}")
    return _Origin(seed, sources)


def transfer_table(
    space: SearchSpace, target: Target, sources: Sources, measured: Mapping[Arch, float], seed: int, folder: Path
) -> LatencyTable:
    """What a transfer is made again from: the measured networks (ms), and the sources by paths from `folder`."""
    return LatencyTable(
        target=target,
        fingerprint={},
        provenance={
            "hwnas": __version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "space": {"name": space.name, **space.config},
            TRANSFER: {
                "seed": seed,
                "sources": [
                    {"path": Path(os.path.relpath(path, folder)).as_posix(), "sha256": _digest(path)}
                    for path in sources.predictors
                ],
            },
        },
        intercept_ms=0.0,
        models=tuple(Model(format_arch(arch), "fit", ms, 0.0) for arch, ms in measured.items()),
        validation=None,
        rows={},
    )


COLUMNS = ("network", "file", "ms")


def dump_times(networks: Sequence[tuple[Arch, str, float | None]]) -> str:
    """A CSV to be filled in: architecture, model file, and ms where it is known."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((format_arch(arch), file, "" if ms is None else f"{ms:g}") for arch, file, ms in networks)
    return text.getvalue()


def read_times(space: SearchSpace, text: str, source: str) -> list[tuple[Arch, str, float | None]]:
    """The networks of such a CSV, with ms where filled in. Raises PredictorError naming the line and the value."""
    try:
        lines = list(csv.reader(io.StringIO(text.lstrip("\ufeff"))))
    except csv.Error as error:
        raise PredictorError(f"{source} is no CSV: {error}; write it anew with: hwnas transfer RECIPE") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        got = ",".join(lines[0]) if lines else "nothing"
        raise PredictorError(f"{source} must begin with the line {','.join(COLUMNS)}, got {got}")
    found: list[tuple[Arch, str, float | None]] = []
    seen: set[Arch] = set()
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        if len(line) != len(COLUMNS):
            raise PredictorError(f"{source}, line {number}: {len(line)} values, must be {', '.join(COLUMNS)}")
        arch = space.check(parse_arch(line[0]))
        if arch in seen:
            raise PredictorError(f"{source}, line {number}: {line[0]} stands there twice; keep one line of it")
        seen.add(arch)
        found.append((arch, line[1], _milliseconds(line[2], f"{source}, line {number}")))
    return found


def _milliseconds(text: str, where: str) -> float | None:
    if not text.strip():
        return None
    try:
        ms = float(text)
    except ValueError:
        raise PredictorError(
            f"{where}: {text!r} is no number of milliseconds; leave it empty if not measured"
        ) from None
    if not 0 < ms < float("inf"):
        raise PredictorError(f"{where}: {text} ms; a latency is above zero, leave it empty if not measured")
    return ms


def _rows(prior: TransferPrior, archs: Sequence[Arch]) -> list[int]:
    places: dict[Any, int] = {tuple(row): number for number, row in enumerate(prior.pool.archs.tolist())}
    return [places[tuple(arch)] for arch in archs]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
