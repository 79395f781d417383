"""Every error a user can cause or meet, under one root; each says what, the value, and the next step."""

from __future__ import annotations


class HwnasError(Exception):
    """Root of all errors raised on purpose by hwnas."""


class RecipeError(HwnasError, ValueError):
    """A recipe, or an option of the command line, cannot be used as written."""


class SpaceError(HwnasError, ValueError):
    """An architecture or an argument does not belong to the search space."""


class DataError(HwnasError, ValueError):
    """A data set is missing, unreadable, or not of the shape that training needs."""


class PredictorError(HwnasError, ValueError):
    """A latency table cannot serve the search space it is asked about."""


class MissingRowError(HwnasError, LookupError):
    """A block of the search space has no row in the latency table."""


class InfeasibleError(HwnasError, ValueError):
    """No architecture keeps the limits; the message says what is attainable."""


class ExportError(HwnasError, RuntimeError):
    """An exported file is invalid or does not compute what its module computes."""


class RunError(HwnasError, RuntimeError):
    """A run folder does not hold what the next stage needs."""


class MissingPackageError(HwnasError, ImportError):
    """An optional package is not installed; the message says how to install it."""
