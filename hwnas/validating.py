"""`hwnas validate`: a recipe's latency table against its target, as files and as an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from hwnas.errors import RecipeError
from hwnas.latency.fewshot import make_predictor
from hwnas.latency.unseen_session import ValidateConfig
from hwnas.latency.validate import validate
from hwnas.report.validation import write_validation_html
from hwnas.run import Run
from hwnas.validation import TableValidation

PAGE = "validation.html"


def validate_stage(run: Run, config: ValidateConfig, folder: Path | None = None) -> tuple[TableValidation, Path]:
    """Validate the run's table; the result, and the folder that holds it as validation.json and validation.html.

    The folder is `<table>-validation` beside the table unless one is given. Raises what `latency.validate` raises.
    """
    path = run.table_path
    folder = folder or path.with_name(f"{path.stem}-validation")
    result = validate(
        run.space,
        run.table,
        make_predictor(run.space, run.table, path.parent),  # a run's own is that of all its precisions
        run.device,
        folder,
        config,
        source=str(path),
        publish=lambda result: write_validation_html(result, folder / PAGE),
        progress=run.progress,
    )
    return result, folder


def validate_each(
    run: Run, config: ValidateConfig, folder: Path | None = None, table: Path | None = None
) -> Iterator[tuple[str, TableValidation, Path]]:
    """Validate the table of each of the run's precisions, the plainest first: precision, result, and its folder.

    Of several precisions each has a folder of its own in the `folder`, if one is given. `table`: instead of the
    recipe's. Raises RecipeError for one table of several precisions, and what `validate_stage` raises.
    """
    several = len(run.precisions) > 1
    if table is not None and several:
        raise RecipeError(
            f"--table names one table, and target.precision has {', '.join(run.precisions)}: name the tables in the "
            "recipe, [profile] table, or leave one precision there"
        )
    for precision in run.precisions:
        part = run.at(precision)
        if table is not None:
            part.table_path = table
        yield precision, *validate_stage(part, config, folder / precision if folder and several else folder)


def parse_fraction(text: str) -> float:
    """0.05 from '5%', '5 %' or '0.05'. Raises RecipeError on anything else, and on more than 100%."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match.group(1)) / (100 if match.group(2) else 1) if match else -1.0
    if not 0 <= value <= 1:
        raise RecipeError(f'--max-error is a share of the latency, like "5%" or "0.05", got {text!r}')
    return value


def failure(result: TableValidation, max_error: float | None) -> str | None:
    """Why the command must fail: nothing was measured, or the mean error is above the limit; None if it need not."""
    if result.agreement is None:
        return f"no network was measured: {'; '.join(result.notes)}"
    if max_error is not None and result.agreement.mean_error > max_error:
        return f"the mean error of {result.agreement.mean_error:.1%} is above --max-error {max_error:.1%}"
    return None
