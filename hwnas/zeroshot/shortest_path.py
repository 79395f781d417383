"""Shortest path: how few layers lie between the images and the outputs.

Along a skip connection a gradient arrives as it left, and residual networks learn by their short paths (Veit, Wilber
and Belongie, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", NeurIPS 2016, arXiv 1605.06431).
The score is ours, and a fact, not a measurement: it draws nothing and needs no weights. Alone it says little, since a
network of nothing but skip connections has the shortest path of all. Beside scores that grow with size it tells apart
what they cannot, the best networks: those that are as large and yet easy to train. Of chains without skip connections
it prefers the shallow ones: leave it out where such chains of different depths are compared.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from torch import Tensor

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.forward import Observer
from hwnas.zeroshot.probe import Probe

# How autograd names what mixes pixels or channels. Normalisations and activations leave every value at its place, and
# global pooling is in all networks: they do not count.
_LAYERS = ("Convolution", "Addmm", "Mm", "Bmm", "ScaledDotProduct", "AvgPool", "MaxPool")


def score(probe: Probe) -> float:
    """Minus the least number of layers (convolution, linear, attention, pooling) on a path from images to outputs.

    One forward; needs no labels, draws nothing. Raises DegenerateNetworkError if there is no path.
    """
    return -float(probe.seen(FewestLayers))


class FewestLayers(Observer[int]):
    """Their number. Refuses a network whose outputs do not depend on the images."""

    needs_graph = True

    def finish(self, images: Tensor, logits: Tensor) -> int:
        found = fewest_layers(logits, images)
        if found is None:
            raise DegenerateNetworkError("the outputs do not depend on the images: the network is dead")
        return found


OBSERVERS = (FewestLayers,)


def fewest_layers(output: Tensor, source: Tensor) -> int | None:
    """The least number of layers on a path of autograd's graph from a leaf to what was computed; None without one."""
    waiting: deque[tuple[Any, int]] = deque([(output.grad_fn, 0)])
    seen = set()
    while waiting:  # in the order of their layers: what comes after a layer waits behind all that does not
        node, count = waiting.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is source:
            return count
        is_layer = node.name().startswith(_LAYERS)
        for before, _ in node.next_functions:
            if is_layer:
                waiting.append((before, count + 1))
            else:
                waiting.appendleft((before, count))
    return None
