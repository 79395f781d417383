"""What binarised paths are compared with searches the same."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.supernet.alphas import Alphas
from hwnas.supernet.binary import TwoPaths
from hwnas.supernet.relaxations import relax
from hwnas.supernet.relaxed import RelaxedNetwork
from hwnas.supernet.steps import frozen

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
SPACE = MobileNetV3Space(
    resolutions=(8,), depths=(1, 2), kernels=(3, 5), expands=(1, 2), stem_width=8, stem_stride=1, stage_widths=(8, 8),
    stage_strides=(1, 1), se=(False, False), activations=("relu", "relu"), head_widths=(8, 8), num_classes=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def gated_paths():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from baselines import gated_paths
    finally:
        sys.path.remove(str(BENCHMARKS))
    return gated_paths


def test_a_step_of_the_architecture_is_ours(gated_paths) -> None:
    torch.manual_seed(0)
    relaxation = relax(SPACE)
    network = RelaxedNetwork(relaxation, seed=0)
    options = [len(edge.options) for edge in relaxation.edges]
    theirs = gated_paths.GatedPaths(network, options, np.zeros((4, 5)), 1.0)
    ours = Alphas(options, 1e-3)
    for edge, alpha in enumerate(theirs.alphas):
        ours.values[edge, : options[edge]] = alpha.detach().numpy()
    before = ours.values.copy()
    pairs: list[tuple[int, int]] = []
    sample_two = theirs.sample_two
    theirs.sample_two = lambda: pairs.extend(sample_two()) or pairs
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    theirs.architecture_step(x, y)
    paths = TwoPaths(*([pair[place] for pair in pairs] for place in (0, 1)))
    with frozen(network):
        cross_entropy(network(x, paths), y).backward()
    gates, among = np.zeros(before.shape), np.zeros(before.shape, dtype=bool)
    for edge, pair in enumerate(pairs):
        among[edge, list(pair)] = True
    for edge, product in zip(paths.edges, paths.products(), strict=True):
        gates[edge, pairs[edge][0]] += product
    ours.step(gates, among)
    for edge, alpha in enumerate(theirs.alphas):
        np.testing.assert_allclose(alpha.detach().numpy(), ours.values[edge, : options[edge]], atol=2e-5)
    assert np.abs(ours.values[among] - before[among]).min() > 5e-4


def test_weights_that_were_not_sampled_keep_a_gradient(gated_paths) -> None:
    """The authors' code moves them by it; ours gives them none (tests/supernet/test_binary_paths.py)."""
    torch.manual_seed(0)
    relaxation = relax(SPACE)
    network = RelaxedNetwork(relaxation, seed=0)
    theirs = gated_paths.GatedPaths(network, [len(edge.options) for edge in relaxation.edges], np.zeros((4, 5)), 1.0)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    for _ in range(8):
        theirs.weight_step(x, y)
    sampled = [
        sum(any(weight.grad is not None for weight in part.parameters()) for part in choice.candidates)
        for choice in network.modules()
        if hasattr(choice, "candidates")
    ]
    assert max(sampled) > 1
