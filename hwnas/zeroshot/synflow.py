"""SynFlow: the product of absolute weights along every path through the network, summed over paths and layers.

Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow", NeurIPS 2020,
arXiv 2006.05467, as Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021,
arXiv 2101.08134, equation 1, make it a score of a network. As in the code of the latter, biases are made absolute too,
normalisations are the identity (theirs: batch normalisation only) and the input is one image of ones, in float64. Our
deviations: the score is the logarithm, since the sum passes 1e46 on common networks; and dropout is off. Activations
are left as they are: their inputs are not negative here, where ReLU is the identity, SiLU, GELU and hard-swish grow,
and the gates of squeeze-and-excitation lie between 1/2 and 1. ReLU6 saturates: as with the authors, what lies before a
saturated activation does not count. Compare networks of ReLU6 with each other only.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from hwnas.zeroshot import DegenerateNetworkError, finite
from hwnas.zeroshot.gradients import gradients, layers
from hwnas.zeroshot.preserved import preserved
from hwnas.zeroshot.probe import Probe

_NORMALISATIONS = frozenset({F.batch_norm, F.instance_norm, F.layer_norm, F.group_norm, F.rms_norm})
# Of the input and the biases. float64 ends at 2**1024, which some hundred wide layers reach
_SCALES = (1.0, 2.0**-1000, 2.0**1000)


class _WithoutNormalisation(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _NORMALISATIONS:
            values: Tensor = args[0] if args else kwargs["input"]
            return values.clone()  # what follows may work in place
        return func(*args, **kwargs)


def score(probe: Probe) -> float:
    """log of the sum over the weights of all layers of |w dR/dw|, R the sum of the outputs.

    Of the images only the shape is used; needs no labels, draws nothing.
    Raises DegenerateNetworkError if nothing passes through the network, or R has more digits than can be had.
    """
    module = probe.module
    own = {id(layer.weight) for layer in layers(module)}
    named = dict(module.named_parameters())
    absolute = {
        name: tensor.detach().abs().double() if tensor.is_floating_point() else tensor
        for name, tensor in (*named.items(), *module.named_buffers())
    }
    weights = [absolute[name].requires_grad_() for name, parameter in named.items() if id(parameter) in own]
    if not weights:
        raise DegenerateNetworkError(f"{type(module).__name__} has no Conv2d and no Linear layer")
    with preserved(module), torch.enable_grad():
        module.eval()
        sizes = []
        for scale in _SCALES:
            total = _total(probe, absolute, scale)
            sizes.append(size := abs(total.item()))
            if 0 < size < math.inf:
                break
        else:
            raise DegenerateNetworkError(
                f"the outputs add up to {sizes[0]}, and in no scale to a number: the network is dead, or overflows"
            )
        if scale != 1 and not bool(_total(probe, absolute, 2 * scale) == 2 * total):
            raise DegenerateNetworkError("the outputs overflow, and do not scale with the input")
        # the derivatives of log R are near 1 / w, whereas those of R are as large as R
        slopes = gradients(total.abs().log(), weights)
    share = torch.stack([(weight.detach() * slope).abs().sum() for weight, slope in zip(weights, slopes, strict=True)])
    if not bool(share.any()):
        raise DegenerateNetworkError("the outputs do not depend on any weight: the network is dead")
    return finite(math.log(size) - math.log(scale) + math.log(float(share.sum())), "synflow")


def _total(probe: Probe, tensors: dict[str, Tensor], scale: float) -> Tensor:
    """R for an input of `scale`, and biases times it."""
    scaled = {name: t * scale if name.rpartition(".")[2] == "bias" else t for name, t in tensors.items()}
    image = torch.full((1, *probe.images.shape[1:]), scale, dtype=torch.float64, device=probe.images.device)
    with _WithoutNormalisation():
        outputs: Tensor = functional_call(probe.module, scaled, (image,))
    return outputs.sum()
