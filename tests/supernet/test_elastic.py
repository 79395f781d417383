"""A subnet is the network of its architecture, with a part of the supernet's weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from supernet.spaces import cells, mobile, residual

from hwnas.errors import SpaceError
from hwnas.space import Arch, SearchSpace, rows_of
from hwnas.spaces import make_space
from hwnas.supernet.elastic import Supernet
from hwnas.supernet.extremes import largest_arch, smallest_arch
from hwnas.supernet.recalibrate import recalibrate

SPACES = {"mobilenetv3": mobile(), "nasbench201": cells(), "resnet": residual()}


def some(space: SearchSpace, n: int = 4) -> list[Arch]:
    return [largest_arch(space), smallest_arch(space), *rows_of(space.sample(n, np.random.default_rng(0)))]


def images(space: SearchSpace, arch: Arch, n: int = 3) -> torch.Tensor:
    return torch.randn(n, *space.input_shape(arch), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=list(SPACES))
def supernet(request: pytest.FixtureRequest) -> Supernet:
    net = Supernet(SPACES[request.param], seed=1)
    with torch.no_grad():  # matrices between kernels are identities at first, under which mistakes could hide
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return net


def test_an_extracted_network_computes_what_the_subnet_does(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        x = images(supernet.space, arch)
        supernet.train()
        torch.testing.assert_close(supernet.extract(arch)(x), supernet(x, arch), rtol=0, atol=1e-6)
        shared = recalibrate(supernet.subnet(arch), [x, 2 * x])
        own = recalibrate(supernet.extract(arch), [x, 2 * x])
        torch.testing.assert_close(own(x), shared(x), rtol=0, atol=1e-6)


def test_an_extracted_network_is_what_the_space_builds(supernet: Supernet) -> None:
    for arch in some(supernet.space):
        extracted, built = supernet.extract(arch), supernet.space.build(arch)
        assert repr(extracted) == repr(built)
        built.load_state_dict(extracted.state_dict(), strict=True)
        x = images(supernet.space, arch)
        torch.testing.assert_close(built.train()(x), extracted.train()(x), rtol=0, atol=0)


def test_an_extracted_network_has_weights_of_its_own(supernet: Supernet) -> None:
    arch = largest_arch(supernet.space)
    before = [value.clone() for value in supernet.state_dict().values()]
    network = supernet.extract(arch)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, supernet.state_dict().values(), strict=True))
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in network.parameters())


def test_gradients_reach_just_the_weights_of_the_subnet() -> None:
    space = mobile()
    supernet = Supernet(space).train()
    arch = smallest_arch(space)
    supernet(images(space, arch), arch).square().sum().backward()
    gradients = {name: p.grad for name, p in supernet.named_parameters()}
    assert gradients["shared.stage0_1.0.weights.layers.depthwise.conv.weight"] is None  # a layer that does not stand
    head = gradients["shared.head.0.weights.classifier.weight"]
    hidden = space.block_at(len(space.positions) - 1, [0, 0]).hidden  # type: ignore[union-attr]
    assert head is not None
    assert (head[:, :hidden] != 0).any()
    assert (head[:, hidden:] == 0).all()
    for step in ("7to5", "5to3"):
        matrix = gradients[f"shared.stage0_0.0.matrices.layers/depthwise/conv/weight/{step}"]
        assert matrix is not None
        assert (matrix != 0).any()


def test_a_smaller_kernel_begins_as_the_centre_of_the_larger_one() -> None:
    space = mobile()
    supernet = Supernet(space)
    large = largest_arch(space)
    slot = [s.name for s in space.slots].index("stage0.0.kernel")
    filters = {}
    for option, size in enumerate((3, 5, 7)):
        network = supernet.extract((*large[:slot], option, *large[slot + 1 :]))
        filters[size] = network.get_parameter("stage0_0.layers.depthwise.conv.weight")
    torch.testing.assert_close(filters[5], filters[7][..., 1:6, 1:6])
    torch.testing.assert_close(filters[3], filters[7][..., 2:5, 2:5])


def test_the_same_seed_gives_the_same_supernet_and_another_another() -> None:
    space = cells()
    first, same, other = (Supernet(space, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_space_whose_blocks_share_no_weights_is_said() -> None:
    space = make_space("morph", {"resolution": 8, "widths": [8, 16, 24], "kernels": [3], "stages": 1, "max_depth": 2})
    with pytest.raises(SpaceError, match=r"morph has no supernet: at position '.*' a block has .* of shape"):
        Supernet(space)


def test_the_ends_of_a_space() -> None:
    space = mobile()
    largest = space.describe(largest_arch(space))
    assert (largest["resolution"], largest["width"], largest["stage1.1.kernel"], largest["stage1.depth"]) == (
        12,
        1,
        7,
        2,
    )
    assert set(smallest_arch(space)) == {0}
    unordered = mobile(kernels=[5, 7, 3], resolutions=[12, 8])
    assert unordered.describe(smallest_arch(unordered))["stage0.0.kernel"] == 3
    assert unordered.describe(largest_arch(unordered))["resolution"] == 12
    assert set(cells().describe(largest_arch(cells())).values()) == {"nor_conv_3x3"}
