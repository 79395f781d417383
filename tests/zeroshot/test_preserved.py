from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.zeroshot import SCORES, load_score
from hwnas.zeroshot.preserved import preserved, use_batch_statistics
from hwnas.zeroshot.probe import Probe


def awkward(net):
    """Mixed modes, a frozen weight, gradients, a hook of the user, moved statistics."""
    net.train()
    net.bn2.eval()
    net.conv3.weight.requires_grad_(False)
    net(torch.rand(4, 3, 16, 16)).sum().backward()
    net.act1.register_forward_hook(lambda *_: None)
    return net


def everything(net):
    """All that a score could change, as comparable values."""
    hooks = [
        (len(p._forward_hooks), len(p._forward_pre_hooks), len(p._backward_hooks), len(p._backward_pre_hooks))
        for p in net.modules()
    ]
    tensors = {name: (t.data_ptr(), t.clone()) for name, t in net.state_dict().items()}
    gradients = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in net.parameters()]
    return hooks, [p.training for p in net.modules()], tensors, gradients


def randomness():
    """What the next draws of the three global generators would be, in a form that compares."""
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "fails"),
    # params and layers run no forward that could fail
    [(name, fails) for name in SCORES for fails in (False, True) if not (fails and name in ("params", "layers"))],
)
def test_every_score_leaves_the_module_and_the_randomness_alone(tinynet, images, labels, name, fails):
    net = awkward(tinynet())
    state, dice = everything(net), randomness()
    if fails:
        with pytest.raises(RuntimeError, match="channels"):  # from within the forward
            load_score(name)(Probe(net, images[:, :2], labels))
    else:
        load_score(name)(Probe(net, images, labels))
    assert_same(everything(net), state)
    assert randomness() == dice
    net(images).sum().backward()  # and it still trains


def test_restores_whatever_is_done_inside(tinynet, images):
    net = awkward(tinynet())
    state = everything(net)

    def disturb(hooks):
        hooks.append(net.conv2.register_full_backward_hook(lambda *_: None))
        use_batch_statistics(net)
        for parameter in net.parameters():
            parameter.requires_grad_(True)
        net(images).square().sum().backward()
        torch.optim.SGD(net.parameters(), lr=1).step()
        torch.rand(3)
        raise KeyError

    with pytest.raises(KeyError), preserved(net, weights=True) as hooks:
        disturb(hooks)
    assert_same(everything(net), state)


def test_weights_are_not_saved_unless_asked(tinynet):
    net = tinynet()
    with preserved(net), torch.no_grad():
        net.conv1.weight.zero_()
    assert not net.conv1.weight.any()


def test_a_module_that_draws_random_numbers_scores_the_same_twice(tinynet, images):
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    def scores():
        torch.rand(1)  # the global state has moved on since the last call
        return [load_score(name)(Probe(net, images)) for name in ("naswot", "zen")]

    net = nn.Sequential(Noisy(), tinynet())
    assert scores() == scores()


def test_batch_statistics_only(tinynet):
    net = nn.Sequential(tinynet(), nn.Dropout())
    use_batch_statistics(net.eval())
    assert {type(part) for part in net.modules() if part.training} == {nn.BatchNorm2d}


def test_a_deep_copy_is_not_needed(tinynet, images, labels):
    net = tinynet()
    twin = copy.deepcopy(net)
    for name in SCORES:
        one, two = (load_score(name)(Probe(n, images, labels)) for n in (net, twin))
        assert one == two
