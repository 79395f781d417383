"""What a validation found, in words: shared by the page and the terminal."""

from __future__ import annotations

from hwnas.report.wording import NOTHING, ms, share
from hwnas.validation import Coverage, SystematicError, TableValidation, WorstCase


def validation_facts(result: TableValidation) -> list[tuple[str, str]]:
    """What a validation found, as (what, value): for the page and for the terminal."""
    found, promise = result.agreement, result.promise
    pairs = [("Unseen networks measured", f"{len(result.measured)} of {len(result.networks)}")]
    if found is not None:
        pairs += [
            (
                "Mean error",
                f"{share(found.mean_error)} ({share(found.mean_error_low)} to {share(found.mean_error_high)})",
            ),
            *(
                (f"Mean error, {drawn} networks", f"{share(error)} on {sum(n.drawn == drawn for n in result.measured)}")
                for drawn, error in result.by_draw.items()
            ),
            ("Noise floor: measured twice", share(found.noise_floor) + _repeats(found.repeated)),
            ("Median error", share(found.median_error)),
            ("Largest error", share(found.max_error)),
            ("Within 5 %", share(found.within_5_percent)),
            ("Within 10 %", share(found.within_10_percent)),
            (
                "Bias",
                f"{share(found.bias, sign=True)} ({share(found.bias_low, sign=True)} to "
                f"{share(found.bias_high, sign=True)})",
            ),
            ("Mean error without the bias", share(found.unbiased_error)),
            ("Spearman, Kendall", f"{_rank(found.spearman)}, {_rank(found.kendall)}"),
        ]
    pairs += [
        ("Measured in the 90 % interval", _coverage(result.interval)),
        ("Measured below the 95 % upper bound", _coverage(result.upper)),
        (
            "Anchors since the table",
            NOTHING if result.anchor_drift is None else f"{share(result.anchor_drift, sign=True)}",
        ),
        (
            "The table says of itself",
            NOTHING
            if promise is None
            else f"{share(promise.mean_error)} on {promise.networks}, noise floor {share(promise.noise_floor)}",
        ),
    ]
    return pairs


def systematic_text(found: SystematicError) -> str:
    """One systematic error in words."""
    amount = (
        f"{share(abs(found.error))} (± {share(found.standard_error)}) too {'much' if found.error > 0 else 'little'}"
    )
    alike = f", or another that goes with it ({found.alike})" if found.alike else ""
    if found.kind == "block":
        estimated = ", an estimated row" if found.origin == "estimated" else ""
        # A block cannot take less than nothing.
        other = " (more than all of it: rather something that goes with it)" if found.error > 1 else ""
        return f"{found.name}: the table has {amount} for this block{estimated}{alike}{other}"
    return f"{found.name}: networks with it are predicted {amount}{alike}"


def explains(worst: WorstCase) -> bool:
    """Whether the blocks' times explain the error: by a share that can be more than the noise of profiling."""
    return worst.explained is not None and 0.25 <= worst.explained <= 2


def worst_text(worst: WorstCase) -> str:
    """One badly predicted network in words."""
    text = (
        f"predicted {ms(worst.predicted_ms)}, measured {ms(worst.measured_ms)}: {share(worst.error, sign=True)}, "
        f"of which noise leaves {share(worst.beyond_noise)}"
    )
    if worst.explained is None:
        return f"{text}; not profiled: {worst.not_profiled}"
    if not explains(worst):
        return f"{text}; its blocks, profiled again, do not explain it ({share(worst.explained)} of it)"
    return f"{text}; its blocks, profiled again, explain {share(worst.explained)} of it"


def _coverage(found: Coverage | None) -> str:
    if found is None:
        return "the table gives none"
    kept = f"{found.inside} of {found.networks} ({share(found.low)} to {share(found.high)})"
    return f"{kept}: {found.fit}, by {found.calibrated} networks"


def _rank(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"


def _repeats(repeated: int) -> str:
    return f" on {repeated}" if repeated else ""
