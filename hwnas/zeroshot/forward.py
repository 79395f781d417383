"""One forward of a network, seen by every score that needs one.

Batch normalisation uses the statistics of the batch, dropout is off. Gradients can be had of the images and of feature
maps, not of weights: scores that want those have a pass of their own, and so have scores of other weights or images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from hwnas.zeroshot import DegenerateNetworkError
from hwnas.zeroshot.activations import WatchActivations
from hwnas.zeroshot.preserved import preserved, refuse_single_values, use_batch_statistics

if TYPE_CHECKING:
    from hwnas.zeroshot.probe import Probe

Value = TypeVar("Value")


class Observer(Generic[Value]):
    """Sees the forward of a probe and makes a value of it: a subclass overrides what it wants to see, and `finish`.

    A method that raises DegenerateNetworkError says why there is no value; the forward goes on for the others. What is
    seen must not be changed, and is only sure to stay as it is until the method returns. Nothing is recorded for
    gradients in these methods, but the network's graph is there, and must be retained, where `needs_graph` says so.
    """

    needs_graph: ClassVar[bool] = False  # at the price of most feature maps in memory until the end

    def __init__(self, probe: Probe) -> None:
        pass

    def saw_activation_input(self, values: Tensor) -> None:
        """What an activation (module or function, see `activations.py`) is about to be computed from."""

    def saw_activation(self, output: Tensor) -> None:
        """What an activation gave."""

    def saw_output(self, part: nn.Module, output: Tensor) -> None:
        """A tensor that no module gave before, and the module that did.

        A container gives what its last part gave, an identity what it was given: that, and the images, are not shown.
        """

    def saw_call(self, part: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
        """What a module gave, containers and identities too. True if it is kept: what follows works on a copy then."""
        return False

    def finish(self, images: Tensor, logits: Tensor) -> Value:
        """The value. images: (n, c, h, w) float; logits: as the network gives them."""
        raise NotImplementedError


Kind = type[Observer[Any]]


def observe(probe: Probe, kinds: Iterable[Kind]) -> dict[Kind, Any]:
    """The value of each observer, or the DegenerateNetworkError that it raised, by one forward for all of them."""
    audience = _Audience(probe, kinds)
    if not audience.observers:
        return audience.refused
    graph = any(kind.needs_graph for kind in audience.observers)
    shown: MutableMapping[Tensor, int] = WeakIdKeyDictionary()  # tensor -> its version, counted up by changes in place

    def activate(values: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        audience.tell("saw_activation_input", values)  # which can be changed in place now
        output = compute()
        audience.tell("saw_activation", output)
        return output

    def saw_call(part: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor | None:
        if isinstance(output, Tensor) and shown.get(output) != output._version:
            shown[output] = output._version
            audience.tell("saw_output", part, output)
        kept = any(audience.tell("saw_call", part, inputs, output).values())
        # gradients through a view that is changed in place are rounded otherwise: they must not depend on who keeps it
        if not kept and not (graph and isinstance(output, Tensor) and output._is_view()):
            return None
        copy: Tensor = output.clone()
        shown[copy] = copy._version
        return copy

    module = probe.module
    with preserved(module) as hooks, torch.set_grad_enabled(graph):  # inference tensors have no version
        use_batch_statistics(module)
        module.requires_grad_(False)
        hooks += refuse_single_values(module)
        if graph or audience.hears("saw_output") or audience.hears("saw_call"):
            hooks += [part.register_forward_hook(saw_call) for part in module.modules()]
        images = probe.images.detach().requires_grad_(graph)
        given = images.clone()  # the first layer may work in place
        shown[given] = given._version
        try:
            # always, since attention computes otherwise where torch functions are not watched
            with WatchActivations(activate):
                logits = module(given)
        except DegenerateNetworkError as error:  # of a batch normalisation
            return dict.fromkeys(audience.observers, error.with_traceback(None)) | audience.refused
        return audience.tell("finish", images, logits) | audience.refused


class _Audience:
    """The observers of one forward. Who raises DegenerateNetworkError is told nothing more."""

    def __init__(self, probe: Probe, kinds: Iterable[Kind]) -> None:
        self.observers: dict[Kind, Observer[Any]] = {}
        self.refused: dict[Kind, Any] = {}
        for kind in kinds:
            self._ask(kind, partial(kind, probe), self.observers)

    def hears(self, method: str) -> list[Kind]:
        """Those that override a method."""
        return [kind for kind in self.observers if getattr(kind, method) is not getattr(Observer, method)]

    def tell(self, method: str, *shown: Any) -> dict[Kind, Any]:
        """What those that override a method answer."""
        answers: dict[Kind, Any] = {}
        if listeners := self.hears(method):
            # what they compute is none of the network's activations
            with torch._C.DisableTorchFunction(), torch.no_grad():
                for kind in listeners:
                    self._ask(kind, partial(getattr(self.observers[kind], method), *shown), answers)
        return answers

    def _ask(self, kind: Kind, question: Callable[[], Any], answers: dict[Kind, Any]) -> None:
        try:
            answers[kind] = question()
        except DegenerateNetworkError as error:
            self.refused[kind] = error.with_traceback(None)  # which would keep feature maps in memory
            self.observers.pop(kind, None)


def gives_channels_last(part: nn.Module) -> bool:
    """Whether a layer's channels are the last axis of what it gives, whereas convolutions have them second."""
    return isinstance(part, nn.Linear) or type(part) is nn.LayerNorm  # subclasses of this are often for (n, c, h, w)
