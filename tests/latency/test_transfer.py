"""A new device from a few networks: better than simpler ways, honest intervals, hard to lead astray."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from hwnas.errors import PredictorError
from hwnas.latency.pool import Pool
from hwnas.latency.shots import choose_shots
from hwnas.latency.transfer import TransferModel, fit_transfer, learn_prior

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
Matrix = NDArray[np.float64]
SLOTS, OPTIONS = 8, 4


def devices(count: int, seed: int, n: int = 600, noise: float = 0.01) -> tuple[NDArray[np.int64], Matrix]:
    """(n, slots) architectures and (n, count) ms: operators of two kinds of cost, on devices that mix them at will."""
    rng = np.random.default_rng(seed)
    archs = rng.integers(0, OPTIONS, (n, SLOTS))
    kinds = rng.gamma(2.0, 1.0, (3, SLOTS, OPTIONS))
    kinds[2] = kinds[2, 0]
    mix = rng.dirichlet(np.ones(3), count)
    own = rng.gamma(20.0, 1 / 20, (count, SLOTS, OPTIONS))
    costs = np.einsum("dk,kso->dso", mix, kinds) * own
    total = costs[:, np.arange(SLOTS), archs].sum(axis=2).T + 3.0
    speed = 10.0 ** rng.uniform(-3, 3, count)
    return archs, total * speed * np.exp(noise * rng.standard_normal(total.shape))


def fitted(
    archs: NDArray[np.int64], ms: Matrix, target: Matrix, k: int, seed: int = 0
) -> tuple[TransferModel, NDArray[np.int64]]:
    """The model of a target by k chosen networks, and the rows that were not measured."""
    rng = np.random.default_rng(seed)
    prior = learn_prior(Pool(archs, np.full(SLOTS, OPTIONS), ms), rng)
    rows = choose_shots(prior, k, rng)
    return fit_transfer(prior, rows, target[rows]), np.setdiff1d(np.arange(len(archs)), rows)


def error(model: TransferModel, target: Matrix, unseen: NDArray[np.int64]) -> float:
    return float(np.abs(model.predict_ms()[unseen] / target[unseen] - 1).mean())


def simple_errors(archs: NDArray[np.int64], ms: Matrix, target: Matrix, rows: NDArray[np.int64]) -> dict[str, float]:
    """The error of each baseline of the benchmark, on the same networks."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from latency_transfer import baselines  # type: ignore[import-not-found, unused-ignore]
    finally:
        sys.path.remove(str(BENCHMARKS))
    unseen = np.setdiff1d(np.arange(len(archs)), rows)
    found = {}
    for name, (features, method) in baselines(Pool(archs, np.full(SLOTS, OPTIONS), ms)).items():
        if not name.endswith("ms"):
            guess = np.exp(method(features[rows], np.log(target[rows]), features[unseen]))
            found[name] = float(np.abs(guess / target[unseen] - 1).mean())
    return found


@pytest.mark.parametrize("k", [3, 10, 40])
def test_beats_the_simpler_ways_on_devices_of_wildly_different_speed(k: int) -> None:
    ours, others = [], []
    for seed in range(3):
        archs, ms = devices(7, seed)
        model, unseen = fitted(archs, ms[:, 1:], ms[:, 0], k)
        ours.append(error(model, ms[:, 0], unseen))
        others.append(simple_errors(archs, ms[:, 1:], ms[:, 0], model.rows))
    for name in others[0]:
        assert np.mean(ours) < np.mean([other[name] for other in others]), name


@pytest.mark.parametrize("k", [5, 15, 60])
def test_intervals_cover_on_devices_never_seen(k: int) -> None:
    covered, below = [], []
    for seed in range(4):
        archs, ms = devices(7, 10 + seed, noise=0.03)
        model, unseen = fitted(archs, ms[:, 1:], ms[:, 0], k)
        low, high = (bound[unseen] for bound in model.interval_ms(0.9))
        covered.append(((low <= ms[unseen, 0]) & (ms[unseen, 0] <= high)).mean())
        below.append((ms[unseen, 0] <= model.upper_ms(0.95)[unseen]).mean())
        assert (low > 0).all()
        assert (low < high).all()
    assert 0.8 < np.mean(covered) < 0.99
    assert np.mean(below) > 0.87


def test_higher_confidence_is_wider_and_a_bound_of_half_is_near_the_prediction() -> None:
    archs, ms = devices(6, 3)
    model, _ = fitted(archs, ms[:, 1:], ms[:, 0], 20)
    widths = [np.median(np.divide(*model.interval_ms(confidence)[::-1])) for confidence in (0.5, 0.9, 0.99)]
    assert widths[0] < widths[1] < widths[2]
    assert np.median(model.upper_ms(0.5) / model.predict_ms()) == pytest.approx(1, abs=0.03)


def test_adverse_and_constant_sources_do_little_harm() -> None:
    clean: list[float] = []
    harmed: list[float] = []
    for seed in range(2):
        archs, ms = devices(6, 20 + seed)
        rng = np.random.default_rng(seed)
        adverse = np.stack(
            [rng.permutation(ms[:, 1]), 1 / ms[:, 2], rng.lognormal(0, 0.3, len(ms)), np.full(len(ms), 7.0)], axis=1
        )
        for sources, errors in ((ms[:, 1:], clean), (np.concatenate([ms[:, 1:], adverse], axis=1), harmed)):
            model, unseen = fitted(archs, sources, ms[:, 0], 20)
            errors.append(error(model, ms[:, 0], unseen))
    assert np.mean(harmed) < 1.3 * np.mean(clean) + 0.01


def test_totals_rounded_to_whole_ms_and_interrupted_measurements_are_survived() -> None:
    errors, covered = [], []
    for seed in range(2):
        archs, ms = devices(7, 30 + seed)
        rng = np.random.default_rng(seed)
        exact = ms[:, 0] / ms[:, 0].mean() * 20
        shown = np.round(exact * np.where(rng.random(len(ms)) < 0.05, 1.8, 1.0))
        model, unseen = fitted(archs, ms[:, 1:], shown, 40)
        errors.append(np.abs(model.predict_ms()[unseen] / exact[unseen] - 1).mean())
        low, high = (bound[unseen] for bound in model.interval_ms(0.9))
        covered.append(((low <= shown[unseen]) & (shown[unseen] <= high)).mean())
    assert np.mean(errors) < 0.03
    assert np.mean(covered) > 0.8


@pytest.mark.parametrize("sources", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_few_sources_and_few_shots_still_give_finite_positive_answers(sources: int, k: int) -> None:
    archs, ms = devices(4, 40)
    model, _ = fitted(archs, ms[:, 1 : 1 + sources], ms[:, 0], k)
    low, high = model.interval_ms(0.9)
    for values in (low, model.predict_ms(), high, model.upper_ms(0.95)):
        assert np.isfinite(values).all()
        assert (values > 0).all()
    assert ((low < ms[:, 0]) & (ms[:, 0] < high)).mean() > 0.5


def test_many_shots_without_any_source_learn_the_space() -> None:
    archs, ms = devices(1, 41)
    model, unseen = fitted(archs, np.empty((len(archs), 0)), ms[:, 0], 150)
    assert error(model, ms[:, 0], unseen) < 0.025


def test_a_twin_is_found_with_five_shots_where_sources_come_in_twins() -> None:
    archs, ms = devices(5, 42, noise=0.0)
    sources = np.concatenate([ms[:, 1:], 5 * ms**1.1], axis=1)
    model, unseen = fitted(archs, sources, ms[:, 0], 5)
    assert error(model, ms[:, 0], unseen) < 0.01


def test_other_architectures_are_predicted_where_their_source_latencies_are_given() -> None:
    archs, ms = devices(8, 43, n=900)
    pool, others = np.arange(600), np.arange(600, 900)
    model, _ = fitted(archs[pool], ms[pool, 1:], ms[pool, 0], 20)
    asked = Pool(archs[others], np.full(SLOTS, OPTIONS), ms[others, 1:])
    predicted = model.predict_ms(asked)
    assert np.abs(predicted / ms[others, 0] - 1).mean() < 0.06
    assert model.predict_ms(asked.take([0, 5])) == pytest.approx(predicted[[0, 5]])
    with pytest.raises(PredictorError, match="asked about options"):
        model.predict_ms(Pool(archs[others], np.full(SLOTS, OPTIONS), ms[others, 2:]))


def test_the_same_seed_gives_the_same_shots_and_predictions() -> None:
    archs, ms = devices(5, 50)
    model, _ = fitted(archs, ms[:, 1:], ms[:, 0], 8, 5)
    again, _ = fitted(archs, ms[:, 1:], ms[:, 0], 8, 5)
    assert np.array_equal(model.rows, again.rows)
    assert np.array_equal(model.upper_ms(), again.upper_ms())


def test_chosen_shots_beat_random_ones_where_an_operator_is_rare() -> None:
    archs, ms = devices(5, 51, noise=0.0)
    rng = np.random.default_rng(0)
    # One network in fifty holds the operator, and only the last source and the target are slow on it.
    rare = rng.random(len(archs)) < 0.02
    archs[:, 0] = np.where(rare, OPTIONS - 1, archs[:, 0] % (OPTIONS - 1))
    ms[rare, 0] *= 2.5
    ms[rare, 4] *= 1.5
    model, unseen = fitted(archs, ms[:, 1:], ms[:, 0], 8)
    draws = [np.random.default_rng(draw).permutation(len(archs))[:8] for draw in range(4)]
    drawn = [error(fit_transfer(model.prior, rows, ms[rows, 0]), ms[:, 0], unseen[rare[unseen]]) for rows in draws]
    assert error(model, ms[:, 0], unseen[rare[unseen]]) < np.mean(drawn)


def test_more_shots_are_chosen_beside_those_already_measured() -> None:
    archs, ms = devices(6, 60, n=120)
    prior = learn_prior(Pool(archs, np.full(SLOTS, OPTIONS), ms), np.random.default_rng(0))
    first = choose_shots(prior, 10, np.random.default_rng(1))
    more = choose_shots(prior, 110, np.random.default_rng(1), measured=[int(row) for row in first])
    assert sorted([*first, *more]) == list(range(120))
    with pytest.raises(PredictorError, match="0 networks of the pool are not measured, asked to choose 1"):
        choose_shots(prior, 1, np.random.default_rng(1), measured=list(range(120)))


def test_equal_architectures_and_repeated_measurements_are_allowed() -> None:
    archs, ms = devices(5, 61, n=60)
    archs, ms = np.tile(archs, (2, 1)), np.tile(ms, (2, 1))
    prior = learn_prior(Pool(archs, np.full(SLOTS, OPTIONS), ms[:, 1:]), np.random.default_rng(0))
    model = fit_transfer(prior, [3, 3, 63, 9, 12, 12], ms[[3, 3, 63, 9, 12, 12], 0])
    assert np.isfinite(model.predict_ms()).all()
    assert model.predict_ms()[3] == pytest.approx(model.predict_ms()[63])


ARCHS = np.array([[0, 1], [1, 2], [1, 0]])
MS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ARCHS.astype(float), [2, 3], MS), "matrix of option indices, got float64"),
        ((ARCHS, [2, 3, 4], MS), "2 slots"),
        ((ARCHS, [2, 2], MS), r"slot 1 has options 0..1, architecture 1 of the pool has 2"),
        ((ARCHS, [2, 3], MS[:2]), r"\(3, sources\), got \(2, 2\)"),
        ((ARCHS, [2, 3], MS, ("a",)), "2 source devices with latencies, 1 with a name"),
        ((ARCHS, [2, 3], MS * [1, 0], ("a", "b")), "'b' has 0 ms for architecture 0"),
        ((ARCHS, [2, 3], np.where(MS > 5.5, np.nan, MS)), "'source 1' has nan ms for architecture 2"),
    ],
)
def test_a_wrong_pool_is_told(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(PredictorError, match=message):
        Pool(*arguments)  # type: ignore[arg-type]


def test_wrong_shots_are_told() -> None:
    prior = learn_prior(Pool(ARCHS, [2, 3], MS), np.random.default_rng(0))
    for rows, ms, message in (
        ([0, 3], [1.0, 1.0], "rows 0..2, got row 3"),
        ([0, 1], [1.0], "one latency for each measured row"),
        ([], [], "at least one"),
        ([0, 1], [1.0, 0.0], "row 1 was measured as 0 ms"),
        ([0, 1], [1.0, np.inf], "row 1 was measured as inf ms"),
        ([0.5], [1.0], "row numbers"),
    ):
        with pytest.raises(PredictorError, match=message):
            fit_transfer(prior, np.array(rows), ms)
    model = fit_transfer(prior, [0, 1], [1.0, 2.0])
    for confidence in (0.0, 1.0, 90):
        with pytest.raises(PredictorError, match="between 0 and 1"):
            model.interval_ms(confidence)


def read(path: Path) -> tuple[list[str], list[list[str]]]:
    with gzip.open(path, "rt") as file:
        header, *rows = list(csv.reader(file))
    return header, rows


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("space", "target", "hidden", "most_error", "least_rank", "least_covered"),
    [
        ("nb201", "titanx_32", "titan|1080|2080", 0.065, 0.95, 0.87),
        ("nb201", "samsung_s7", "samsung_s7", 0.11, 0.93, 0.8),
        ("fbnet", "titanxp_1", "titanx", 0.01, 0.98, 0.87),
        ("fbnet", "gold_6240", "gold|silver", 0.045, 0.89, 0.75),
    ],
)
def test_public_devices_of_a_family_never_seen(
    shared_data: Path, space: str, target: str, hidden: str, most_error: float, least_rank: float, least_covered: float
) -> None:
    header, rows = read(shared_data / space / f"{space}_latency_ms.csv.gz")
    if space == "nb201":
        names, table = read(shared_data / "nb201" / "nb201_cifar10.csv.gz")
        digits = {row[names.index("index")]: row[names.index("ops")] for row in table}
        archs = np.array([[int(digit) for digit in digits[row[0]]] for row in rows])
        first = 1
    else:
        archs = np.array([[int(value) for value in row[1:23]] for row in rows])
        first = 23
    ms = {name: np.array([float(row[header.index(name)]) for row in rows]) for name in header[first:]}
    prefixes = tuple(hidden.split("|"))
    sources = np.stack([values for name, values in ms.items() if not name.startswith(prefixes)], axis=1)
    prior = learn_prior(Pool(archs, archs.max(axis=0) + 1, sources), np.random.default_rng(0))
    errors, ranks, covered = [], [], []
    unseen = np.random.default_rng(9).permutation(len(archs))[:1000]
    asked = prior.pool.take(unseen)
    for seed in range(3):
        chosen = choose_shots(prior, 10, np.random.default_rng(seed))
        model = fit_transfer(prior, chosen, ms[target][chosen])
        predicted, measured = model.predict_ms(asked), ms[target][unseen]
        low, high = model.interval_ms(0.9, asked)
        errors.append(np.abs(predicted / measured - 1).mean())
        ranks.append(spearmanr(predicted, measured)[0])
        covered.append(((low <= measured) & (measured <= high)).mean())
    assert np.mean(errors) < most_error
    assert np.mean(ranks) > least_rank
    assert np.mean(covered) > least_covered
