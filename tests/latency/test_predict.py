from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hwnas.errors import MissingRowError, PredictorError
from hwnas.latency.fusion import FusionCounts
from hwnas.latency.index import BlockIndex
from hwnas.latency.predict import TablePredictor
from hwnas.space import format_arch
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwprof.table import LatencyTable, Model, Row, dump_table, load_table
from hwprof.target import Target

ARGUMENTS = {"resolutions": (16, 24), "depths": (1, 2), "width_mults": (0.5, 1.0), "num_classes": 3}
SPACE = MobileNetV3Space(**ARGUMENTS)
INTERCEPT_MS = 0.25


def table_of(space, models=(), intercept_ms=INTERCEPT_MS):
    keys = BlockIndex(space).keys
    ms = np.random.default_rng(0).uniform(0.1, 1, len(keys))
    return LatencyTable(
        target=Target(),
        fingerprint={},
        provenance={"space": {"name": space.name, **space.config}},
        intercept_ms=intercept_ms,
        models=tuple(models),
        validation=None,
        rows={key: Row(float(value), 0.01, 3) for key, value in zip(keys, ms, strict=True)},
    )


def held_out(space, n, noise, seed):
    """Networks whose measured latency is what the table predicts, times noise."""
    archs = space.sample(n, np.random.default_rng(seed))
    exact = TablePredictor(space, table_of(space)).predict_ms(archs)
    measured = exact * np.exp(np.random.default_rng(seed + 1).normal(0, noise, n))
    return [Model(format_arch(a), "held-out", float(ms), 0.01) for a, ms in zip(archs, measured, strict=True)], archs


@pytest.fixture(scope="module", params=[SPACE, NasBench201Space(channels=4, cells=2, resolution=8)], ids=["mb", "nb"])
def space(request):
    return request.param


def test_predictions_are_sums_of_rows(space):
    table = table_of(space)
    archs = space.sample(30, np.random.default_rng(3))
    wanted = [INTERCEPT_MS + sum(table.rows[block.key].ms for block in space.blocks(tuple(arch))) for arch in archs]
    predictor = TablePredictor(space, table)
    np.testing.assert_allclose(predictor.predict_ms(archs), wanted, rtol=1e-12)
    one_by_one = [predictor.predict_ms(arch[None])[0] for arch in archs]
    np.testing.assert_array_equal(predictor.predict_ms(archs), one_by_one)


def test_inactive_slots_do_not_matter(space):
    raw = np.random.default_rng(4).integers(0, space.cardinalities, (200, len(space.slots)))
    canonical = space.canonical(raw)
    assert (raw != canonical).any()
    predictor = TablePredictor(space, table_of(space))
    np.testing.assert_array_equal(predictor.predict_ms(raw), predictor.predict_ms(canonical))


def test_costs_by_position_add_up_to_the_prediction(space):
    predictor = TablePredictor(space, table_of(space))
    arch = space.sample(1, np.random.default_rng(5))[0]
    total = predictor.intercept_ms
    for position, costs in zip(space.positions, predictor.costs_ms, strict=True):
        extents = [len(space.slots[slot].options) for slot in position.slots]
        total += costs.reshape(extents)[tuple(arch[list(position.slots)])]
    assert total == pytest.approx(predictor.predict_ms(arch[None])[0], rel=1e-12)


def test_a_missing_row_names_itself_its_neighbours_and_the_command():
    table = table_of(SPACE)
    gone = next(key for key in table.rows if "kernel=7" in key)
    table = replace(table, rows={key: row for key, row in table.rows.items() if key != gone})
    with pytest.raises(MissingRowError) as raised:
        TablePredictor(SPACE, table)
    message = str(raised.value)
    assert f"no row for {gone} of mobilenetv3; nearest rows: mbconv:" in message
    assert "hwnas profile RECIPE.toml" in message
    assert "more blocks" not in message
    with pytest.raises(MissingRowError, match=r"no row for conv:.* and \d+ more blocks of .*; nearest rows: none\."):
        TablePredictor(SPACE, replace(table, rows={}))


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95])
def test_intervals_hold_new_measurements_with_their_confidence(confidence):
    """Coverage of split-conformal intervals, averaged over tables: at least the confidence, and not much above."""
    held, new, tables = 39, 50, 40
    covered = []
    for seed in range(tables):
        models, _ = held_out(SPACE, held + new, 0.05, 1000 * seed)
        predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models[:held])))
        archs = np.array([[int(index) for index in model.name.split("-")] for model in models[held:]])
        low, high = predictor.interval_ms(archs, confidence)
        measured = np.array([model.ms for model in models[held:]])
        covered.append(((low <= measured) & (measured <= high)).mean())
    standard_error = np.std(covered) / np.sqrt(tables)
    assert -3 * standard_error < np.mean(covered) - confidence < 1 / (held + 1) + 3 * standard_error


TABLE = table_of(SPACE)


# One network again and again: errors are scaled by what is difficult about a network, which differs between them.
ALIKE = np.repeat(SPACE.sample(1, np.random.default_rng(0)), 18, axis=0)


def test_bounds_are_the_quantiles_of_the_held_out_errors():
    ratios = [1.01, 1 / 1.02, 1.03, 1 / 1.04, 1.05, 1.06, 1.07, 1.08, 1 / 1.09]
    archs = ALIKE[:9]
    exact = TablePredictor(SPACE, TABLE).predict_ms(archs)
    models = [Model(format_arch(a), "held-out", ms * r, 0.0) for a, ms, r in zip(archs, exact, ratios, strict=True)]
    predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models)))
    for confidence, bound in ((0.9, 1.09), (0.5, 1.05)):
        low, high = predictor.interval_ms(archs[:1], confidence)
        assert (low, high) == (pytest.approx(exact[:1] / bound), pytest.approx(exact[:1] * bound))
    assert predictor.upper_ms(archs[:1], 0.9) == pytest.approx(exact[:1] * 1.08)  # 1 / 1.09 is no danger
    assert predictor.upper_ms(archs[:1], 0.2) == pytest.approx(exact[:1] / 1.04)


def test_a_bound_holds_for_random_and_for_searched_networks():
    """A search finds what is predicted too fast, so its networks have errors of their own."""
    archs = ALIKE
    exact = TablePredictor(SPACE, TABLE).predict_ms(archs)

    def upper(ratios: tuple[float, float], searched: int = 9) -> float:
        roles = ["held-out"] * 9 + ["searched"] * searched
        measured = exact * np.repeat(ratios, 9)
        models = [Model(format_arch(a), role, ms, 0.0) for a, role, ms in zip(archs, roles, measured, strict=False)]
        predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models)))
        found = predictor.upper_ms(archs, 0.9) / predictor.predict_ms(archs)
        low, high = predictor.interval_ms(archs)
        np.testing.assert_allclose(high / exact, exact / low)
        return float(found[0])

    assert upper((1.01, 1.08)) == pytest.approx(1.08)
    assert upper((1.08, 1.01)) == pytest.approx(1.08)
    # one searched network says nothing of its kind, and is one of ten
    assert upper((1.01, 1.08), searched=1) == pytest.approx(1.08)
    assert upper((1.01, 1.08), searched=0) == pytest.approx(1.01)


def test_a_network_of_few_blocks_has_a_wider_interval():
    """Blocks err independently of each other, so that errors average out over many."""
    models, archs = held_out(SPACE, 40, 0.02, 0)
    predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models)))
    low, high = predictor.interval_ms(archs)
    blocks = predictor.index.counts(archs).sum(axis=1)
    assert np.corrcoef(blocks, np.log(high / low))[0, 1] < -0.5


def test_the_second_session_is_what_counts():
    archs = ALIKE[:9]
    exact = TablePredictor(SPACE, TABLE).predict_ms(archs)
    models = [Model(format_arch(a), "held-out", ms, 0.0, ms * 1.2) for a, ms in zip(archs, exact, strict=True)]
    predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models)))
    assert predictor.upper_ms(archs, 0.9) == pytest.approx(exact * 1.2)


def test_estimated_rows_widen_the_interval_of_the_networks_that_hold_them():
    models, archs = held_out(SPACE, 40, 0.02, 0)
    estimated = TablePredictor(SPACE, TABLE).index.keys[7]
    row = replace(TABLE.rows[estimated], origin="estimated", count=0, spread=0.5)
    predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models), rows={**TABLE.rows, estimated: row}))
    holds = predictor.index.counts(archs)[:, 7] > 0
    assert 0 < holds.sum() < len(holds)
    low, high = predictor.interval_ms(archs)
    upper = predictor.upper_ms(archs, 0.9) / predictor.predict_ms(archs)
    assert (high / low)[holds].min() > (high / low)[~holds].max()
    assert upper[holds].min() > upper[~holds].max()


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95])
def test_upper_bounds_hold_new_measurements_with_their_confidence(confidence):
    held, new, tables = 39, 50, 40
    covered = []
    for seed in range(tables):
        models, archs = held_out(SPACE, held + new, 0.05, 1000 * seed)
        predictor = TablePredictor(SPACE, replace(TABLE, models=tuple(models[:held])))
        measured = np.array([model.ms for model in models[held:]])
        covered.append((measured <= predictor.upper_ms(archs[held:], confidence)).mean())
    standard_error = np.std(covered) / np.sqrt(tables)
    assert -3 * standard_error < np.mean(covered) - confidence < 1 / (held + 1) + 3 * standard_error


CELLS = NasBench201Space(channels=4, cells=1, resolution=8)


def test_fusions_add_what_a_sum_over_positions_cannot_say():
    table = replace(table_of(CELLS), fusion_ms={"relu fused": -0.01, "relu shared moved": 3.0})
    predictor, plain = TablePredictor(CELLS, table), TablePredictor(CELLS, table_of(CELLS))
    archs = CELLS.sample(30, np.random.default_rng(0))
    counts = FusionCounts(CELLS, ("relu fused", "relu shared moved"))(archs)
    assert (counts > 0).any(axis=0).all()
    wanted = plain.predict_ms(archs) + counts @ [-0.01, 3.0]
    np.testing.assert_allclose(predictor.predict_ms(archs), wanted)
    assert (predictor.additive, plain.additive) == (False, True)
    read = TablePredictor(CELLS, load_table(dump_table(table)))
    np.testing.assert_allclose(read.predict_ms(archs), wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("models", "confidence", "needed"), [(8, 0.9, 9), (0, 0.5, 1), (18, 0.95, 19), (3, 0.8, 4), (98, 0.99, 99)]
)
def test_too_few_held_out_networks_for_a_confidence(models, confidence, needed):
    held, archs = held_out(SPACE, needed, 0.02, 0)
    few = TablePredictor(SPACE, replace(TABLE, models=tuple(held[:models])))
    message = f"{confidence} needs at least {needed} held-out networks, the table has {models}"
    with pytest.raises(PredictorError, match=message):
        few.interval_ms(archs, confidence)
    with pytest.raises(PredictorError, match=message):
        few.upper_ms(archs, confidence)
    assert (TablePredictor(SPACE, replace(TABLE, models=tuple(held))).upper_ms(archs, confidence) > 0).all()


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 90, float("nan")])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(PredictorError, match="confidence must lie between 0 and 1"):
        TablePredictor(SPACE, TABLE).upper_ms(SPACE.sample(1, np.random.default_rng(0)), confidence)


@pytest.mark.parametrize(
    "name",
    ["0-0-0", "resnet50", "-".join(["0"] * (len(SPACE.slots) + 1)), "-".join(["9"] * len(SPACE.slots))],
    ids=["short", "text", "long", "unknown option"],
)
def test_held_out_networks_of_another_space(name):
    with pytest.raises(PredictorError, match="networks of another space"):
        TablePredictor(SPACE, replace(TABLE, provenance={}, models=(Model(name, "held-out", 1.0, 0.0),)))


def test_a_table_of_other_arguments():
    """The rows are all there, but option 0 of its networks means another size."""
    turned = MobileNetV3Space(**ARGUMENTS | {"resolutions": (24, 16)})
    assert set(BlockIndex(turned).keys) == set(TABLE.rows)
    with pytest.raises(PredictorError, match=r"resolutions is \[16, 24\] in the table, \[24, 16\] wanted\. Profile"):
        TablePredictor(turned, TABLE)


def test_a_table_read_from_text_serves_its_space():
    models, archs = held_out(SPACE, 9, 0.02, 0)
    table = replace(TABLE, models=tuple(models))
    read = TablePredictor(SPACE, load_table(dump_table(table)))
    np.testing.assert_allclose(read.predict_ms(archs), TablePredictor(SPACE, table).predict_ms(archs), rtol=1e-5)


def test_a_latency_of_zero_or_less_is_an_error():
    predictor = TablePredictor(SPACE, replace(TABLE, intercept_ms=-100.0))
    archs = SPACE.sample(3, np.random.default_rng(0))
    with pytest.raises(PredictorError, match=r"the table predicts -\d.* ms for \d+-.*intercept of -100 ms"):
        predictor.predict_ms(archs)
    with pytest.raises(PredictorError, match="the table predicts -"):
        TablePredictor(
            SPACE,
            replace(TABLE, intercept_ms=-100.0, models=(Model(format_arch(archs[0]), "held-out", 1.0, 0.0),)),
        )


def test_other_roles_do_not_narrow_the_interval():
    models, _ = held_out(SPACE, 9, 0.02, 0)
    fitted = [replace(model, role="fit") for model in models]
    with pytest.raises(PredictorError, match="the table has 0"):
        TablePredictor(SPACE, replace(TABLE, models=tuple(fitted))).interval_ms(
            SPACE.sample(1, np.random.default_rng(0))
        )
