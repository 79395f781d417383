"""Gate gradients by paths, beside torch's own; architecture parameters; what a step leaves alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hwnas.space import SearchSpace
from hwnas.spaces.mobilenetv3 import MobileNetV3Space
from hwnas.spaces.nasbench201 import NasBench201Space
from hwnas.spaces.resnet import ResNetSpace
from hwnas.supernet.alphas import Alphas
from hwnas.supernet.binary import BinaryPaths, TwoPaths
from hwnas.supernet.latency_loss import Form, edge_costs
from hwnas.supernet.mixture import Mixture, weighted
from hwnas.supernet.reinforce import reinforce
from hwnas.supernet.relaxations import relax
from hwnas.supernet.relaxed import Mixer, RelaxedNetwork, one_path
from hwnas.supernet.steps import Goal, frozen, weight_step, weights_optimizer
from hwnas.supernet.strategy import make_strategy

SPACES = [
    MobileNetV3Space(
        resolutions=(8,), depths=(1, 2), kernels=(3, 5), expands=(1, 2), stem_width=8, stem_stride=1,
        stage_widths=(8, 16), stage_strides=(1, 2), se=(False, True), activations=("relu", "hardswish"),
        head_widths=(16, 16), num_classes=4,
    ),
    NasBench201Space(num_classes=4, channels=4, cells=1, resolution=8),
    ResNetSpace(
        resolutions=(8,), width_mults=(1.0,), depths=(0, 1), base_depths=(1, 1), expands=(0.25, 0.5, 1),
        stem_widths=(8,), stem_depths=(0,), stem_stride=1, max_pool=False, stage_widths=(16, 32),
        stage_strides=(1, 2), num_classes=4,
    ),
]  # fmt: skip


def made(space: SearchSpace, seed: int = 0) -> tuple[RelaxedNetwork, Alphas, Tensor, Tensor]:
    relaxation = relax(space)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, 8, 8, generator=generator)
    y = torch.randint(0, 4, (6,), generator=generator)
    return RelaxedNetwork(relaxation, seed=seed), Alphas([len(edge.options) for edge in relaxation.edges], 0.1), x, y


def loss_of(network: RelaxedNetwork, x: Tensor, y: Tensor) -> Callable[[Mixer], Tensor]:
    return lambda mixer: cross_entropy(network(x, mixer), y)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
@pytest.mark.parametrize("seed", range(5))
def test_gate_gradients_are_those_of_a_graph_with_all_gates(space: SearchSpace, seed: int) -> None:
    network, alphas, x, y = made(space, seed)
    rng = np.random.default_rng(seed)
    alphas.values += np.where(alphas.exists, rng.normal(size=alphas.values.shape), 0.0)
    with frozen(network):
        found = BinaryPaths().gate_gradient(loss_of(network, x, y), alphas, np.random.default_rng(seed))
    again = np.random.default_rng(seed)
    among = alphas.sample_two(again)
    active = alphas.sample(again, among)
    assert (found.among == among).all()
    gates = torch.zeros(among.shape)
    gates[np.arange(len(active)), active] = 1.0
    loss = loss_of(network, x, y)(weighted(gates.requires_grad_()))
    loss.backward()
    assert gates.grad is not None
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    expected, other = (alphas_after(alphas, gradient, among) for gradient in (gates.grad.numpy(), -gates.grad.numpy()))
    np.testing.assert_allclose(alphas_after(alphas, found.gates, among), expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(alphas_after(alphas, found.gates, among), other, rtol=1e-4, atol=1e-6)


def alphas_after(alphas: Alphas, gates: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The gradient of the parameters as a plain double sum."""
    p = alphas.probabilities(among)
    gradient = np.zeros(p.shape)
    for edge, shares in enumerate(p):
        for i in range(len(shares)):
            for j in range(len(shares)):
                gradient[edge, i] += gates[edge, j] * shares[j] * (float(i == j) - shares[i])
    return gradient


@pytest.mark.parametrize(("space", "other"), [(SPACES[0], 3), (SPACES[2], 2)], ids=["mobilenetv3", "resnet"])
def test_no_weight_gets_a_gradient_or_a_graph_of_its_own(space: SearchSpace, other: int) -> None:
    network, alphas, x, y = made(space)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def numbers(mixer: Mixer, freeze: bool) -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if freeze:
                with frozen(network):
                    loss_of(network, x, y)(mixer)
            else:
                loss_of(network, x, y)(mixer)
        return sum(saved)

    two, one = TwoPaths([0] * 4, [other] * 4), one_path([0] * 4)
    everything = weighted(torch.from_numpy(alphas.probabilities()).float())
    assert numbers(two, freeze=True) < numbers(one, freeze=False) < 0.5 * numbers(everything, freeze=False)
    with frozen(network):
        BinaryPaths().gate_gradient(loss_of(network, x, y), alphas, np.random.default_rng(0))
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())


def test_the_gradient_in_a_mixture_is_the_numerical_one() -> None:
    network, alphas, x, y = made(SPACES[0])
    network.double().eval()
    network_loss = loss_of(network, x.double(), y)

    def loss(values: np.ndarray) -> float:
        alphas.values = values
        return float(network_loss(weighted(torch.from_numpy(alphas.probabilities()))).detach())

    start = alphas.values.copy()
    network.float()
    found = Mixture().gate_gradient(loss_of(network, x, y), alphas, np.random.default_rng(0))
    gradient = alphas_after(alphas, found.gates, alphas.exists)
    network.double()
    for edge, option in ((0, 0), (1, 4), (2, 1)):
        change = np.zeros(start.shape)
        change[edge, option] = 1e-4
        slope = (loss(start + change) - loss(start - change)) / 2e-4
        assert gradient[edge, option] == pytest.approx(slope, rel=2e-2, abs=2e-6)


def test_a_step_moves_the_two_options_and_keeps_all_other_probabilities() -> None:
    alphas, rng = Alphas([4, 2, 1], 0.1), np.random.default_rng(0)
    alphas.values += np.where(alphas.exists, rng.normal(size=(3, 4)), 0.0)
    before, among = alphas.probabilities(), alphas.sample_two(rng)
    assert among.sum(axis=1).tolist() == [2, 2, 1]
    alphas.step(rng.normal(size=(3, 4)), among)
    after = alphas.probabilities()
    np.testing.assert_allclose(after[~among], before[~among], rtol=1e-12)
    np.testing.assert_allclose((after * among).sum(1), (before * among).sum(1), rtol=1e-12)
    assert (np.abs(after - before)[:2][among[:2]] > 1e-3).all()
    # a first step of Adam is as long as the rate, whatever the gradient
    alphas = Alphas([2], 0.1)
    alphas.step(np.array([[3.0, -5.0]]), np.array([[True, True]]))
    np.testing.assert_allclose(alphas.values[0, 1] - alphas.values[0, 0], 0.2, rtol=1e-6)


def test_what_was_not_sampled_keeps_its_moments() -> None:
    alphas, rng = Alphas([3], 0.1), np.random.default_rng(0)
    alphas.step(rng.normal(size=(1, 3)), np.array([[True, True, False]]))
    before = alphas.state()
    for _ in range(50):
        alphas.step(rng.normal(size=(1, 3)), np.array([[False, True, True]]))
    after = alphas.state()
    assert sorted(before) == ["squares", "steps", "values"]
    for name in before:
        assert torch.equal(after[name][:, 0], before[name][:, 0])
        assert not torch.equal(after[name][:, 1], before[name][:, 1])


def test_samples_follow_the_probabilities() -> None:
    alphas, rng = Alphas([3, 2], 0.1), np.random.default_rng(0)
    alphas.values[0] = np.log([0.6, 0.3, 0.1])
    drawn = np.array([alphas.sample(rng) for _ in range(4000)])
    np.testing.assert_allclose(np.bincount(drawn[:, 0]) / 4000, [0.6, 0.3, 0.1], atol=0.03)
    assert set(drawn[:, 1]) == {0, 1}
    # two without replacement: the third is left out by p1 p2 / (1 - p1) + p2 p1 / (1 - p2)
    pairs = np.array([alphas.sample_two(rng) for _ in range(4000)])
    assert 1 - pairs[:, 0, 2].mean() == pytest.approx(0.18 / 0.4 + 0.18 / 0.7, abs=0.03)


def test_only_the_sampled_path_is_trained() -> None:
    network, _, x, y = made(SPACES[0])
    optimizer = weights_optimizer(network, 1e-3, torch.device("cpu"))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    before = {name: value.clone() for name, value in network.named_parameters()}
    for choices in ([0, 4, 3, 4], [1, 4, 3, 4]):
        weight_step(network, optimizer, one_path(choices), x, y)
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    touched = {name.partition(".candidates.")[2][:1] for name in changed if "stage0_0" in name}
    assert touched == {"0", "1"}
    assert not any("stage0_1" in name or "stage1_1" in name for name in changed)
    # the first path's momentum must not move it in a step of the second
    middle = network.body.get_submodule("stage0_0.candidates.0").state_dict()
    kept = {name: value.clone() for name, value in middle.items()}
    weight_step(network, optimizer, one_path([1, 4, 3, 4]), x, y)
    assert all(torch.equal(value, kept[name]) for name, value in middle.items())


def test_an_edge_of_one_option_is_computed_and_never_moves() -> None:
    space = MobileNetV3Space(
        resolutions=(8,), depths=(1, 2), kernels=(3,), expands=(2,), stem_width=8, stem_stride=1, stage_widths=(8,),
        stage_strides=(1,), se=(False,), activations=("relu",), head_widths=(16, 16), num_classes=4,
    )  # fmt: skip
    network, alphas, x, y = made(space)
    with frozen(network):
        found = BinaryPaths().gate_gradient(loss_of(network, x, y), alphas, np.random.default_rng(0))
    assert found.among.tolist() == [[True, False], [True, True]]
    alphas.step(found.gates, found.among)
    assert alphas.values[0, 0] == 0
    assert (alphas.values[1] != 0).all()


def test_reinforce_makes_rewarded_options_likely() -> None:
    alphas, rng = Alphas([3, 4], 0.1), np.random.default_rng(0)
    baseline: float | None = None
    for _ in range(100):
        found, baseline = reinforce(lambda choices: float(choices[0] == 2), alphas, rng, 10, baseline)
        alphas.step(found.gates, found.among)
    p = alphas.probabilities()
    assert p[0, 2] > 0.9
    assert p[1].max() < 0.9
    # the mean over all architectures of reward * gradient of the log probability, written out for two options
    alphas, draws = Alphas([2], 0.1), np.random.default_rng(1)
    found, _ = reinforce(lambda choices: float(choices[0]), alphas, draws, 4000, None)
    assert alphas_after(alphas, found.gates, found.among)[0, 1] == pytest.approx(-0.25, abs=0.02)


@pytest.mark.parametrize("form", ["add", "reinforce"])
def test_steps_compute_in_bfloat16_where_the_device_has_it(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    network, alphas, x, y = made(SPACES[0])
    relaxation = relax(SPACES[0])
    goal = Goal(relaxation, lambda archs: 1.0 + archs.sum(axis=1), 5.0, form, 0.1, samples=2)
    costs = edge_costs(relaxation, goal.predict_ms, alphas, np.random.default_rng(0), samples=1)
    seen: set[torch.dtype] = set()
    network.body.get_submodule("stem").register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    for wanted in (torch.float32, torch.bfloat16):
        monkeypatch.setattr("hwnas.supernet.steps.mixed_precision", lambda device: wanted == torch.bfloat16)  # noqa: B023
        seen.clear()
        optimizer = weights_optimizer(network, 1e-3, torch.device("cpu"))
        loss = weight_step(network, optimizer, one_path([0, 4, 3, 4]), x, y)
        goal.step(network, make_strategy("binary"), alphas, costs, x, y, np.random.default_rng(0))
        assert seen == {wanted}
        assert loss.dtype == torch.float32
        assert {weight.dtype for weight in network.parameters()} == {torch.float32}
        assert np.isfinite(alphas.values[alphas.exists]).all()


def test_gate_gradients_in_bfloat16_are_those_in_float_but_for_rounding() -> None:
    network, alphas, x, y = made(SPACES[0])

    def loss(mixer: Mixer) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(network(x, mixer), y)

    with frozen(network):
        exact, rounded = (
            BinaryPaths().gate_gradient(each, alphas, np.random.default_rng(0)).gates
            for each in (loss_of(network, x, y), loss)
        )
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


def test_nothing_but_sampled_paths_is_computed() -> None:
    candidates = nn.ModuleList([Counting() for _ in range(4)])
    one_path([2])(0, candidates, torch.ones(2))
    TwoPaths([1], [3])(0, candidates, torch.ones(2))
    assert [module.calls for module in candidates if isinstance(module, Counting)] == [0, 1, 1, 1]
