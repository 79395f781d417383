"""Whole-network boosting: gradient-boosted trees on a network's options, MACs, parameters and depth.

Nothing of a network's inside is measured. The trees learn the logarithm of what an affine fit on MACs leaves:
cross-validated on the whole networks of the shipped tables, learning the latency's own had 1.1 to 1.7 times that error.
The networks to learn from are drawn like those to predict.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor

from baselines.macs import network_features
from baselines.session import Baseline, Context, FloatMatrix, linear_fit, measure_networks
from hwnas.errors import PredictorError
from hwnas.latency.covering import random_archs
from hwnas.run import Run
from hwnas.space import IntMatrix, parse_arch


def boosting(run: Run, archs: IntMatrix, context: Context) -> list[Baseline]:
    """Trees trained on `context.train_networks` whole networks, measured for it.

    Raises PredictorError if fewer than three could be measured.
    """
    # The stream of seed + 1 is another than that of the unseen networks, which are excluded anyway.
    rng = np.random.default_rng(context.seed + 1)
    drawn = random_archs(run.space, context.train_networks, rng, exclude=context.unseen)
    session = measure_networks(run, context, "networks to boost", drawn)
    if len(session.ms) < 3:
        raise PredictorError(f"{len(session.ms)} networks to learn from were measured, at least 3 are needed")
    known = np.array([parse_arch(name) for name in session.ms])
    ms = np.array(list(session.ms.values()))
    features, wanted = network_features(run, known), network_features(run, archs)
    # Times far below the smallest network's are an extrapolation that a logarithm cannot take.
    start, begin = (
        np.maximum(linear_fit(features[:, :1], ms, matrix[:, :1]), ms.min() / 2) for matrix in (features, wanted)
    )
    trees = GradientBoostingRegressor(
        n_estimators=300, learning_rate=0.05, max_depth=2, subsample=0.7, random_state=context.seed
    )
    trees.fit(_table(run, known, features), np.log(ms / start))
    predicted = begin * np.exp(trees.predict(_table(run, archs, wanted)))
    return [Baseline(f"boosting, {len(ms)} whole networks", predicted, session.device_seconds)]


def _table(run: Run, archs: IntMatrix, features: FloatMatrix) -> FloatMatrix:
    """(n, slots), (n, features) -> (n, options + features): every slot's option one-hot, and the features."""
    one_hot = [np.eye(count)[archs[:, slot]] for slot, count in enumerate(run.space.cardinalities)]
    return np.concatenate([*one_hot, features], axis=1)
