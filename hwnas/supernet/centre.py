"""Convolutions whose kernels are larger than what they look at: only the centre is computed.

On a map of s x s pixels a "same"-padded kernel reaches s - 1 pixels at most in each direction; what lies farther out
meets padding alone, adds zeros and gets no gradient. In late stages at small resolutions that is most of a kernel (all
but one of 49 weights on a single pixel), and torch's scratch memory for it is many times the weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import conv2d


class CentreConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes the same without the weights that meet padding alone."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, reach = self.kernel_size[0], 2 * max(input.shape[2:]) - 1
        edge = max(kernel - reach, 0) // 2
        if edge == 0:
            return super().forward(input)
        weight = self.weight[..., edge : kernel - edge, edge : kernel - edge]
        padding = int(self.padding[0]) - edge
        return conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)


def compute_centres(network: nn.Module) -> None:
    """Let every "same"-padded convolution of a network be a CentreConv2d; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_same_padded(module):
            module.__class__ = CentreConv2d


def _is_same_padded(conv: nn.Conv2d) -> bool:
    kernel = conv.kernel_size[0]
    square = conv.kernel_size == (kernel, kernel) and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return square and kernel > 1 and kernel % 2 == 1 and conv.padding == (kernel // 2, kernel // 2)
