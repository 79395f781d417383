"""`hwnas score`: every zero-shot score of torchvision's networks or a space's architectures, and their ranks."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hwnas.errors import DataError, RecipeError
from hwnas.ranks import places
from hwnas.report.wording import silent_scores
from hwnas.zeroshot import COMBINED, SCORES, ScoreResult, score_names
from hwnas.zeroshot.combine import FloatMatrix, FloatVector, combine, silent, silent_among_best

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.run import Run
    from hwnas.train.data import ImageData

SCORE_EXAMPLE = "Example: hwnas score --model torchvision:mobilenet_v3_small --model torchvision:resnet18"
TORCHVISION = "torchvision"
TORCHVISION_PIXELS = 224
_CLASSES = 1000  # of torchvision's networks where no data says otherwise


@dataclass(frozen=True)
class _Scored:
    """A model, the shape of its images, and its scores."""

    name: str
    shape: tuple[int, int, int]
    results: dict[str, ScoreResult]


def score(
    model: Annotated[
        list[str] | None,
        typer.Option(help="torchvision:NAME, SPACE:ARCH, or ARCH of the recipe's space; give several to rank them."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(metavar="RECIPE", help="A recipe, for its space and images.")] = None,
    random: Annotated[int, typer.Option(min=0, help="Add so many random architectures of the recipe's space.")] = 0,
    scores: Annotated[str, typer.Option(help="all, combined, or names separated by commas.")] = "all",
    data: Annotated[
        str | None, typer.Option(help="Real images, as recipes name them (digits, npz:PATH, ...); else noise.")
    ] = None,
    root: Annotated[Path, typer.Option(help="Where torchvision's data sets are kept.")] = Path("data"),
    batch: Annotated[int, typer.Option(min=1, help="Images to score with.")] = 16,
    resolution: Annotated[
        int | None, typer.Option(min=1, help="Their pixels; by default the network's, 224 for torchvision's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights, noise and scores.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Print every zero-shot score of untrained networks with the seconds it took, and rank several."""
    names = tuple(SCORES) if scores == "all" else score_names(scores if scores == "combined" else scores.split(","))
    with _workplace(recipe, data, root) as (run, images):
        models = list(model or [])
        if random:
            models += _random_archs(run, random, seed)
        if not models:
            raise RecipeError("nothing to score: give --model torchvision:NAME, --model SPACE:ARCH, or a --recipe")
        found = [_score(each, run, images, names, batch, resolution, seed, threads) for each in models]
    combined = combine(_chosen(names), _matrix(found)) if len(found) > 1 else None
    if as_json:
        typer.echo(json.dumps(_as_json(found, combined, images), indent=1))
    else:
        _show(found, combined, images)


@contextmanager
def _workplace(recipe: Path | None, data: str | None, root: Path) -> Iterator[tuple[Run | None, ImageData | None]]:
    """The recipe's run, if one is given, and real images, if there are."""
    from hwnas.recipe import load_recipe
    from hwnas.run import Run
    from hwnas.train.data import load_data

    if recipe is None:
        yield None, None if data is None else load_data(data, root=root)
        return
    if data is not None:
        raise RecipeError("the images are those of --recipe or of --data: give one of them")
    run = Run(load_recipe(recipe), recipe.read_text(encoding="utf-8"))
    yield run, run.data


def _random_archs(run: Run | None, count: int, seed: int) -> list[str]:
    from hwnas.space import format_arch, rows_of, unique_archs

    if run is None:
        raise RecipeError("--random draws from the space of a recipe: give --recipe")
    archs = unique_archs(run.space.canonical(run.space.sample(4 * count, np.random.default_rng(seed))))[:count]
    return [format_arch(arch) for arch in rows_of(archs)]


def _score(
    text: str,
    run: Run | None,
    images: ImageData | None,
    names: Sequence[str],
    batch: int,
    resolution: int | None,
    seed: int,
    threads: int,
) -> _Scored:
    import torch

    from hwnas.train.isolation import at_most_threads
    from hwnas.zeroshot import compute_scores

    with torch.random.fork_rng(devices=[]), at_most_threads(threads):
        torch.manual_seed(seed)
        module, shape, classes = _module(text, run, images)
        if resolution is not None:
            shape = (shape[0], resolution, resolution)
        x, y = _batch(images, shape, classes, batch, seed)
        return _Scored(text, shape, compute_scores(names, module, x, y, seed=seed))


def _module(text: str, run: Run | None, images: ImageData | None) -> tuple[nn.Module, tuple[int, int, int], int]:
    """A network with initial weights, the shape of its images, and how many classes it tells apart."""
    from hwnas.space import parse_arch
    from hwnas.spaces import make_space, space_arguments

    kind, _, rest = text.rpartition(":")
    if kind == TORCHVISION:
        classes = _CLASSES if images is None else images.num_classes
        return _torchvision(rest, classes), (3, TORCHVISION_PIXELS, TORCHVISION_PIXELS), classes
    if kind:
        given = {} if images is None else {"num_classes": images.num_classes, "in_channels": images.channels}
        known = space_arguments(kind)
        space = make_space(kind, {key: value for key, value in given.items() if key in known})
    elif run is not None:
        space = run.space
    else:
        raise RecipeError(f"--model {text!r} is neither torchvision:NAME nor SPACE:ARCH, and no --recipe has its space")
    arch = space.check(parse_arch(rest))
    return space.build(arch), space.input_shape(arch), space.num_classes


def _torchvision(name: str, classes: int) -> nn.Module:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
        raise RecipeError(f"torchvision has no classification network {name!r}; {hint}")
    extra: dict[str, Any] = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = models.get_model(name, weights=None, num_classes=classes, **extra)
    return module


def _batch(
    images: ImageData | None, shape: tuple[int, int, int], classes: int, batch: int, seed: int
) -> tuple[Tensor, Tensor]:
    import torch

    from hwnas.train.preprocess import normalise

    if images is None:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, *shape, generator=generator), torch.randint(classes, (batch,), generator=generator)
    if images.channels != shape[0]:
        raise DataError(f"{images.name} has {images.channels} channels, the network takes {shape[0]}")
    count = min(batch, len(images.x_train))
    return normalise(images.x_train[:count], images.mean, images.std, shape[1]), images.y_train[:count]


def _chosen(names: Sequence[str]) -> list[str]:
    """The scores that are combined: those of the default as far as they were asked for."""
    return [name for name in COMBINED if name in names] or list(names)


def _matrix(found: Sequence[_Scored]) -> FloatMatrix:
    """(models, scores to combine) values, NaN where undefined."""
    chosen = _chosen(tuple(found[0].results))
    return np.array([[each.results[name].value for name in chosen] for each in found], dtype=np.float64)


def _as_json(found: Sequence[_Scored], combined: FloatVector | None, images: ImageData | None) -> dict[str, Any]:
    return {
        "images": "noise" if images is None else images.name,
        "models": [
            {
                "model": each.name,
                "shape": list(each.shape),
                "place": None if combined is None else int(places(combined)[n]),
                "combined": None if combined is None else float(combined[n]),
                "scores": {
                    name: {"value": one.value, "reason": one.reason, "seconds": round(one.seconds, 4)}
                    for name, one in each.results.items()
                },
            }
            for n, each in enumerate(found)
        ],
    }


def _show(found: Sequence[_Scored], combined: FloatVector | None, images: ImageData | None) -> None:
    out = Console()
    order = range(len(found)) if combined is None else np.argsort(-combined, kind="stable").tolist()
    models = [found[n] for n in order]
    title = f"Scores of untrained networks on {'noise' if images is None else images.name}"
    table = Table(title=title, title_justify="left")
    table.add_column("Score")
    for each in models:
        table.add_column(Text(f"{each.name}\n{'x'.join(map(str, each.shape))}"), justify="right", overflow="fold")
    table.add_column("Seconds" if combined is None else "Seconds\n(mean)", justify="right")
    for name in models[0].results:
        results = [each.results[name] for each in models]
        found_places = places(np.array([one.value for one in results], dtype=np.float64))
        shown = ["undefined" if one.value is None else f"{one.value:.6g}" for one in results]
        if combined is not None:
            shown = [f"{text} ({place})" for text, place in zip(shown, found_places, strict=True)]
        table.add_row(name, *shown, f"{np.mean([one.seconds for one in results]):.3f}")
    if combined is not None:
        rows = zip(combined[order], places(combined[order]), strict=True)
        table.add_row("combined", *(f"{value:.4f} ({place})" for value, place in rows), "", style="bold")
    out.print(table)
    for each in models:
        for name, one in each.results.items():
            if one.reason is not None:
                out.print(Text(f"{each.name}: {name} is undefined: {one.reason}", style="yellow"), soft_wrap=True)
    if combined is not None:
        chosen = _chosen(tuple(models[0].results))
        without_vote = silent(chosen, _matrix(models))
        names = ", ".join(name for name in chosen if name not in without_vote)
        out.print(f"combined: mean log(rank / {len(found)}) in {names}; (1) is the best", soft_wrap=True)
        if among_best := silent_among_best(chosen, _matrix(models)):
            out.print(f"without a say in the order of the best quarter: {', '.join(among_best)}", soft_wrap=True)
        if without_vote:
            out.print(silent_scores(without_vote), soft_wrap=True)
    if len(models[0].results) > 1:
        out.print("seconds of a pass that several scores share are those of the first of them", soft_wrap=True)
    if images is None:
        out.print("on noise; with --data or --recipe real images rank better", soft_wrap=True)
