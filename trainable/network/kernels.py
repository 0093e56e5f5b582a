"""CPU kernels for batch norm, ReLU and dropout, with two passes over memory per direction, on one core.

torch's layers need twice as many passes, and convert bf16 to fp32 and back in each. numba compiles the kernels at
their first call. Arrays have the shape (rows, channels) in memory order; each row is one pixel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

# Number of rows that are summed in fp32 before the sum is added to the fp64 total.
BLOCK_ROWS = 512

Rows = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Kernels:
    """Kernels for one dtype of activations. Per-channel arrays have the shape (channels,).

    Attributes:
        sums: (x, shift, total, total_of_squares): adds x - shift and its square to the fp64 totals.
        forward: (x, scale, shift, keep, y): y = max(scale · x + shift, 0) where `keep` is -1, otherwise 0. An empty
            `keep` keeps all units.
        gradient_sums: (x, mean, y, dy, total, total_of_products): adds dy and dy · (x - mean) where y is not 0.
        backward: (x, y, dy, of_dy, of_x, constant, dx): dx = of_dy · dy + of_x · x + constant, where dy counts as 0
            if y is 0.
    """

    sums: Callable[..., None]
    forward: Callable[..., None]
    gradient_sums: Callable[..., None]
    backward: Callable[..., None]


@cache
def kernels_for(dtype: torch.dtype) -> Kernels:
    """Kernels for float32 arrays, or for bfloat16 arrays viewed as uint16."""
    return _compile(_from_bf16, _to_bf16) if dtype == torch.bfloat16 else _compile(_same, _same)


def as_rows(images: torch.Tensor) -> Rows:
    """View (N, C, H, W) in channels_last memory order as (N · H · W, C); bf16 is viewed as uint16."""
    rows = images.detach().permute(0, 2, 3, 1).reshape(-1, images.shape[1])
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


# Full fast mathematics may turn NaN, which reveals divergence, into any number. Only fused a · b + c is allowed.
_kernel = njit(fastmath={"contract"}, nogil=True)
_inlined = njit(fastmath={"contract"}, inline="always")


@_inlined
def _from_bf16(bits: Any) -> Any:
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@_inlined
def _to_bf16(number: Any) -> Any:
    # Round to nearest, ties to even, as torch does.
    bits = np.float32(number).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@_inlined
def _same(number: Any) -> Any:
    return number


def _compile(load: Callable[[Any], Any], store: Callable[[Any], Any]) -> Kernels:
    zero = np.float32(0)

    @_kernel
    def sums(x: Rows, shift: Rows, total: Rows, total_of_squares: Rows) -> None:
        n_rows, n_channels = x.shape
        part, part_of_squares = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
        for start in range(0, n_rows, BLOCK_ROWS):
            part[:] = zero
            part_of_squares[:] = zero
            for row in range(start, min(start + BLOCK_ROWS, n_rows)):
                for channel in range(n_channels):
                    number = load(x[row, channel]) - shift[channel]
                    part[channel] += number
                    part_of_squares[channel] += number * number
            for channel in range(n_channels):
                total[channel] += part[channel]
                total_of_squares[channel] += part_of_squares[channel]

    @_kernel
    def forward(x: Rows, scale: Rows, shift: Rows, keep: Rows, y: Rows) -> None:
        n_rows, n_channels = x.shape
        if keep.size == 0:
            for row in range(n_rows):
                for channel in range(n_channels):
                    number = load(x[row, channel]) * scale[channel] + shift[channel]
                    y[row, channel] = store(zero if number < zero else number)
        else:
            for row in range(n_rows):
                for channel in range(n_channels):
                    number = load(x[row, channel]) * scale[channel] + shift[channel]
                    # `|`, not `or`: with a branch, LLVM does not vectorise the loop for AVX2 (8 times as slow).
                    y[row, channel] = store(zero if (number < zero) | (keep[row, channel] == 0) else number)

    @_kernel
    def gradient_sums(x: Rows, mean: Rows, y: Rows, dy: Rows, total: Rows, total_of_products: Rows) -> None:
        n_rows, n_channels = x.shape
        part, part_of_products = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
        for start in range(0, n_rows, BLOCK_ROWS):
            part[:] = zero
            part_of_products[:] = zero
            for row in range(start, min(start + BLOCK_ROWS, n_rows)):
                for channel in range(n_channels):
                    gradient = zero if y[row, channel] == 0 else load(dy[row, channel])
                    part[channel] += gradient
                    part_of_products[channel] += gradient * (load(x[row, channel]) - mean[channel])
            for channel in range(n_channels):
                total[channel] += part[channel]
                total_of_products[channel] += part_of_products[channel]

    @_kernel
    def backward(x: Rows, y: Rows, dy: Rows, of_dy: Rows, of_x: Rows, constant: Rows, dx: Rows) -> None:
        n_rows, n_channels = x.shape
        for row in range(n_rows):
            for channel in range(n_channels):
                gradient = zero if y[row, channel] == 0 else load(dy[row, channel])
                number = of_dy[channel] * gradient + of_x[channel] * load(x[row, channel]) + constant[channel]
                dx[row, channel] = store(number)

    return Kernels(sums, forward, gradient_sums, backward)
