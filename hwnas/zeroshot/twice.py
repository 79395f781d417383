"""Convolutions and batch normalisations that are cheap to differentiate a second time.

PyTorch computes these second derivatives by convolutions with kernels as large as feature maps, and by some thirty
passes over the values of a batch normalisation. Here they are convolutions and normalisations again, and what is not
asked for is left out: the second time there are no derivatives by weights, but by one number t that scales them all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FIVE = (None,) * 5


class Convolution(torch.autograd.Function):
    """`torch.conv2d` of (n, c, h, w) with `t * weight`, no bias, by stride, padding, dilation and groups; t () is 1.

    The first gradient, to be had with `create_graph`, is that by inputs and `t * weight`. The second is that by
    inputs and t.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, t: Tensor, *options: Any) -> Tensor:
        ctx.save_for_backward(inputs, weight, t)
        ctx.options = options
        return torch.conv2d(inputs, weight, None, *options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        inputs, weight, t = ctx.saved_tensors
        by_inputs = ctx.needs_input_grad[0]
        if torch.is_grad_enabled():
            found = _ConvolutionGradient.apply(gradients[0], inputs, weight, t, by_inputs, *ctx.options)
            return *found, *_FIVE
        # the scalar product of output and gradient, which is also that of the inputs and the gradient by them
        found = _convolution_gradient(gradients[0], inputs, weight, (by_inputs, not by_inputs), ctx.options)
        by_t = _product(inputs, found[0]) if by_inputs else _product(weight, found[1])
        return found[0], None, by_t, *_FIVE[1:]


class _ConvolutionGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, inputs: Tensor, weight: Tensor, t: Tensor, by_inputs: bool, *options: Any
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(gradient, inputs, weight)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return _convolution_gradient(gradient, inputs, weight, (by_inputs, True), options)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> Any:
        of_inputs, of_weight = cotangents
        gradient, inputs, weight = ctx.saved_tensors
        again, by_inputs, by_t = None, None, None
        if of_inputs is not None:
            again = torch.conv2d(of_inputs, weight, None, *ctx.options)
            by_t = _product(again, gradient)
        if of_weight is not None:
            more = torch.conv2d(inputs, of_weight, None, *ctx.options)
            again = more if again is None else again.add_(more)
            if ctx.needs_input_grad[1]:
                by_inputs, _ = _convolution_gradient(gradient, inputs, of_weight, (True, False), ctx.options)
        return again, by_inputs, None, by_t, *_FIVE


def _product(a: Tensor, b: Tensor | None) -> Tensor | None:
    """The scalar product, in float64: those of all layers nearly cancel out."""
    return None if b is None else (a * b).sum(dtype=torch.float64)


def _convolution_gradient(
    gradient: Tensor, inputs: Tensor, weight: Tensor, wanted: tuple[bool, bool], options: tuple[Any, ...]
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = options
    found: tuple[Tensor | None, Tensor | None, None] = torch.ops.aten.convolution_backward(
        *(gradient, inputs, weight, None, stride, padding, dilation, False, (0, 0), groups, (*wanted, False))
    )
    return found[:2]


class Normalisation(torch.autograd.Function):
    """Batch normalisation of (n, c, ...) by the statistics of the batch; weight and bias (c,) or None are constants."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor | None, bias: Tensor | None, epsilon: float) -> Tensor:
        # with channels last PyTorch adds up one value after the other in float32; its sums are more exact, and as fast
        axes = [axis for axis in range(inputs.dim()) if axis != 1]
        mean = inputs.mean(axes, keepdim=True)
        variance = (inputs - mean).square_().mean(axes)
        mean, scale = mean.flatten(), (variance + epsilon).rsqrt()
        output = torch.batch_norm(inputs, weight, bias, mean, variance, False, 0.0, epsilon, False)
        ctx.save_for_backward(inputs, weight, mean, scale)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _NormalisationGradient.apply(gradients[0], *ctx.saved_tensors), None, None, None


class _NormalisationGradient(torch.autograd.Function):
    """w s (g - m(g) - z m(g z)) of the gradient g, where z = (x - m(x)) s, and m is the mean over images and pixels."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, inputs: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor) -> Any:
        back, along = _normalisation_gradient(gradient, inputs, weight, mean, scale)
        ctx.save_for_backward(back, along, inputs, weight, mean, scale)
        return back

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        """The same of the cotangent h by g, and -s (m(g z) it(h) + m(h z) it(g) + m(h it(g)) z) by x."""
        back, along, inputs, weight, mean, scale = ctx.saved_tensors
        again, along_too = _normalisation_gradient(cotangents[0], inputs, weight, mean, scale)
        zero, one = torch.zeros_like(mean), torch.ones_like(mean)
        _, product = _normalisation_gradient(cotangents[0], back, None, zero, one)
        of_inputs = -scale.square() * product

        def scaled(values: Tensor, by: Tensor, plus: Tensor = zero) -> Tensor:  # faster than to broadcast
            return torch.batch_norm(values, by, plus, zero, one, False, 0.0, 0.0, False)

        by_inputs = scaled(inputs, of_inputs, -of_inputs * mean)
        by_inputs.add_(scaled(again, -scale * along)).add_(scaled(back, -scale * along_too))
        return again, by_inputs, None, None, None


def _normalisation_gradient(
    gradient: Tensor, inputs: Tensor, weight: Tensor | None, mean: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient by the inputs, and (c,) the mean of gradient x normalised input."""
    back, along, _ = torch.ops.aten.native_batch_norm_backward(
        *(gradient, inputs, weight, None, None, mean, scale, True, 0.0, (True, True, False))
    )
    return back, along / (inputs.numel() // inputs.shape[1])
