"""All methods on the same unseen networks: what each predicts, how far it is off, and what it needed on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from baselines.boosting import boosting
from baselines.isolated_blocks import isolated_blocks
from baselines.kernels import isolated_kernels
from baselines.macs import macs
from baselines.session import Baseline, Context, FloatVector, Session, measure_networks
from hwnas.errors import HwnasError, PredictorError
from hwnas.latency.agreement import agreement
from hwnas.run import Run
from hwnas.space import IntMatrix, format_arch
from hwnas.validation import Agreement
from hwprof.errors import HwprofError

BASELINES: dict[str, Callable[[Run, IntMatrix, Context], list[Baseline]]] = {
    "macs": macs,
    "blocks": isolated_blocks,
    "kernels": isolated_kernels,
    "boosting": boosting,
}
OURS, NOISE = "latency table", "noise floor (measured again)"
CONFIDENCE = 0.9
LEAST = 3


@dataclass(frozen=True)
class Method:
    """One row of the comparison: (n,) predicted ms of the compared networks, or why there are none."""

    name: str
    predicted_ms: FloatVector
    device_seconds: float
    found: Agreement | None
    coverage: float | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What was compared: networks (n, slots), their (n,) ms of both sessions, and the methods, ours first."""

    archs: IntMatrix
    first_ms: FloatVector
    second_ms: FloatVector
    methods: tuple[Method, ...]
    sessions: tuple[Session, ...]

    def times_ours(self, method: Method) -> float | None:
        """The method's mean error as a multiple of the table's; None where there is none."""
        ours = self.methods[0].found
        if ours is None or method.found is None or ours.mean_error == 0:
            return None
        return method.found.mean_error / ours.mean_error


def compare(run: Run, archs: IntMatrix, context: Context, names: Sequence[str]) -> Comparison:
    """Measure the unseen networks twice, with the named baselines between, and judge all methods on the same networks.

    A baseline that fails says why; the others go on. Raises PredictorError if fewer than LEAST networks were measured.
    """
    if len(archs) < LEAST:
        raise PredictorError(
            f"the space has {len(archs)} networks that the table has not seen, at least {LEAST} are needed"
        )
    first = measure_networks(run, context, "unseen networks", archs)
    context.network_seconds = first.device_seconds / len(archs)
    made = [item for name in names for item in _attempt(name, run, archs, context)]
    second = measure_networks(run, context, "unseen networks again", archs)
    keys = [format_arch(arch) for arch in archs]
    kept = np.array([key in first.ms and key in second.ms for key in keys])
    if kept.sum() < LEAST:
        reasons = "; ".join(sorted({*first.refused.values(), *second.refused.values()})[:2])
        raise PredictorError(f"only {kept.sum()} of {len(archs)} unseen networks could be measured: {reasons}")
    first_ms, second_ms = (
        np.array([session.ms[key] for key, keep in zip(keys, kept, strict=True) if keep]) for session in (first, second)
    )
    table_seconds = float(run.table.provenance.get("device_seconds", 0.0))
    ours = _judged(Baseline(OURS, run.predictor.predict_ms(archs), table_seconds), kept, first_ms)
    methods = (
        replace(ours, coverage=_coverage(run, archs[kept], first_ms)),
        *(item if isinstance(item, Method) else _judged(item, kept, first_ms) for item in made),
        Method(NOISE, second_ms, second.device_seconds, _agreement(second_ms, first_ms)),
    )
    return Comparison(archs[kept], first_ms, second_ms, methods, tuple(context.sessions))


def _attempt(name: str, run: Run, archs: IntMatrix, context: Context) -> Sequence[Baseline | Method]:
    """What the named baseline gives, or why it gives nothing."""
    before = len(context.sessions)
    try:
        return BASELINES[name](run, archs, context)
    except (HwnasError, HwprofError) as error:
        return [_failed(name, error, sum(session.device_seconds for session in context.sessions[before:]))]


def _judged(baseline: Baseline, kept: NDArray[np.bool_], measured_ms: FloatVector) -> Method:
    predicted = baseline.predicted_ms[kept]
    try:
        return Method(baseline.name, predicted, baseline.device_seconds, _agreement(predicted, measured_ms))
    except PredictorError as error:  # a fit that gives a time below zero
        return _failed(baseline.name, error, baseline.device_seconds)


def _failed(name: str, error: Exception, device_seconds: float) -> Method:
    return Method(name, np.empty(0), device_seconds, None, failed=str(error))


def _agreement(predicted_ms: FloatVector, measured_ms: FloatVector) -> Agreement | None:
    return agreement(predicted_ms, measured_ms, [None] * len(measured_ms), np.random.default_rng(0))


def _coverage(run: Run, archs: IntMatrix, measured_ms: FloatVector) -> float | None:
    """The fraction of (n,) measurements inside their intervals; None if the table has too few networks for them."""
    try:
        low, high = run.predictor.interval_ms(archs, CONFIDENCE)
    except PredictorError:
        return None
    return float(((low <= measured_ms) & (measured_ms <= high)).mean())
