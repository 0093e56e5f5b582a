"""Batch norm, ReLU and dropout as one module."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from spaces.schema import Precision
from trainable.network import dropout, kernels
from trainable.network.dropout import DropoutNoise
from trainable.network.kernels import Rows, as_rows

_NO_MASK = np.empty((0, 0), np.int16)


class NormReluDropout(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, `nn.ReLU` and `nn.Dropout` in sequence, with the same distribution, parameters and state dict.

    When training on a CPU with channels_last activations in fp32 or bf16, the forward and the backward pass each
    read memory twice: once for the sums of batch norm, once for everything else. Dropout's factor 1 / (1 - p) is
    part of batch norm's scale, because ReLU(c · x) = c · ReLU(x) for c > 0. In all other cases torch's layers run.

    Args:
        noise: source of the dropout masks; None for no dropout.
    """

    def __init__(self, n_channels: int, noise: DropoutNoise | None) -> None:
        super().__init__(n_channels)
        self.noise = noise

    @property
    def dropout(self) -> float:
        return self.noise.p if self.noise else 0.0

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) → same shape and dtype."""
        if self.training and _is_fusible(features):
            fused: Tensor = _NormReluDropout.apply(features, self.weight, self.bias, self)
            return fused
        return F.dropout(F.relu(super().forward(features)), self.dropout, self.training)


def compile_for(precision: Precision) -> None:
    """Compile the kernels for `precision` ahead of their first use: two to four seconds, unless they are cached."""
    noise = DropoutNoise(0.5)
    noise.reseed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    for layer in (NormReluDropout(2, noise), NormReluDropout(2, None)):
        features = torch.zeros(2, 2, 2, 2, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
        layer(features).sum().backward()


def _is_fusible(features: Tensor) -> bool:
    is_known = features.device.type == "cpu" and features.dtype in (torch.float32, torch.bfloat16)
    in_rows = is_known and features.is_contiguous(memory_format=torch.channels_last)
    # One value per channel has no variance. torch's batch norm raises the error for that.
    return in_rows and features.numel() > features.shape[1]


class _NormReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, layer: NormReluDropout) -> Tensor:
        x = as_rows(features)
        mean, variance = _statistics(x)
        _track(layer, mean, variance, len(x))
        deviation = np.sqrt(variance + layer.eps)
        factor = 1 / (1 - layer.dropout)
        scale = factor * weight.detach().numpy() / deviation
        shift = factor * bias.detach().numpy() - scale * mean
        output = torch.empty_like(features)
        _forward(x, scale, shift, layer.noise, as_rows(output))
        ctx.save_for_backward(features, output, weight)
        ctx.mean, ctx.deviation, ctx.factor = mean, deviation, factor
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        # Gradients of Ioffe and Szegedy, "Batch Normalization" (2015), applied after ReLU's mask and dropout's factor.
        features, output, weight = ctx.saved_tensors
        x, y, dy = (as_rows(t.contiguous(memory_format=torch.channels_last)) for t in (features, output, gradient))
        total, total_of_products = np.zeros(x.shape[1]), np.zeros(x.shape[1])
        kernels.gradient_sums(x, _f32(ctx.mean), y, dy, total, total_of_products)
        bias_gradient = ctx.factor * total
        weight_gradient = ctx.factor * total_of_products / ctx.deviation

        scale = weight.detach().numpy() / ctx.deviation
        of_x = -scale * weight_gradient / (ctx.deviation * len(x))
        constant = -scale * bias_gradient / len(x) - of_x * ctx.mean
        features_gradient = torch.empty_like(features)
        kernels.backward(x, y, dy, _f32(scale * ctx.factor), _f32(of_x), _f32(constant), as_rows(features_gradient))
        return features_gradient, _tensor(weight_gradient), _tensor(bias_gradient), None


def _statistics(x: Rows) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and biased variance per channel."""
    # Subtract the first pixel's values: otherwise the squares of large means cancel and lose the variance's digits.
    shift = torch.from_numpy(x[:1]).view(torch.bfloat16).float().numpy()[0] if x.dtype == np.uint16 else x[0].copy()
    total, total_of_squares = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    kernels.sums(x, shift, total, total_of_squares)
    off = total / len(x)
    return shift + off, np.maximum(total_of_squares / len(x) - off * off, 0)


def _track(layer: NormReluDropout, mean: NDArray[np.float64], variance: NDArray[np.float64], n_rows: int) -> None:
    """Update the running statistics, which evaluation uses, as `nn.BatchNorm2d` does."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.momentum is not None
    assert layer.num_batches_tracked is not None
    with torch.no_grad():
        layer.num_batches_tracked.add_(1)
        layer.running_mean.lerp_(_tensor(mean), layer.momentum)
        layer.running_var.lerp_(_tensor(variance * (n_rows / max(n_rows - 1, 1))), layer.momentum)


def _forward(
    x: Rows,
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    noise: DropoutNoise | None,
    y: Rows,
) -> None:
    n_channels = x.shape[1]
    if noise is None or noise.p == 0:
        kernels.forward(x, _f32(scale), _f32(shift), _NO_MASK, y)
        return
    n_rows = max(1, dropout.STRETCH_UNITS // n_channels)
    for start in range(0, len(x), n_rows):
        part = slice(start, min(start + n_rows, len(x)))
        keep = noise.draw((part.stop - part.start) * n_channels).reshape(-1, n_channels)
        kernels.forward(x[part], _f32(scale), _f32(shift), keep, y[part])


def _f32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32)


def _tensor(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
