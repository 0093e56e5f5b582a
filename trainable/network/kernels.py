"""CPU kernels for batch norm, ReLU and dropout, with two passes over memory per direction, on one core.

torch's layers need twice as many passes, and convert bf16 to fp32 and back in each. Activations are (rows, channels)
arrays in memory order, each row one pixel, of float32 or of bfloat16 viewed as uint16; per-channel arrays are
(channels,). numba compiles a kernel at its first call with a dtype, and caches the machine code: in `__pycache__`, as
Python does, or in the user's cache folder. A change of this file makes the cache invalid, but a change of another file
does not: all code that the kernels call has to stand here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

# Number of rows that are summed in fp32 before the sum is added to the fp64 total.
BLOCK_ROWS = 512

Rows = NDArray[Any]

_ZERO = np.float32(0)


def as_rows(images: torch.Tensor) -> Rows:
    """View (N, C, H, W) in channels_last memory order as (N · H · W, C); bf16 is viewed as uint16."""
    rows = images.detach().permute(0, 2, 3, 1).reshape(-1, images.shape[1])
    return rows.view(torch.uint16).numpy() if rows.dtype == torch.bfloat16 else rows.numpy()


def _load(stored: Any) -> Any:
    """The float32 of a stored number; numba chooses the code by the type."""
    raise NotImplementedError


@overload(_load, inline="always")
def _load_of(stored: Any) -> Any:
    def from_bf16(stored: Any) -> Any:
        return np.uint32(np.uint32(stored) << np.uint32(16)).view(np.float32)

    def same(stored: Any) -> Any:
        return stored

    return from_bf16 if stored == types.uint16 else same


def _store(number: Any, like: Any) -> Any:
    """A float32 as it is stored in arrays with elements of the type of `like`; the value of `like` does not matter."""
    raise NotImplementedError


@overload(_store, inline="always")
def _store_of(number: Any, like: Any) -> Any:
    def to_bf16(number: Any, like: Any) -> Any:
        # Round to nearest, ties to even, as torch does.
        bits = np.float32(number).view(np.uint32)
        return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))

    def same(number: Any, like: Any) -> Any:
        return number

    return to_bf16 if like == types.uint16 else same


# Full fast mathematics may turn NaN, which reveals divergence, into any number. Only fused a · b + c is allowed.
_compiled = partial(njit, fastmath={"contract"}, nogil=True)


def _kernel(function: Callable[..., None]) -> Any:
    try:
        return _compiled(function, cache=True)
    except RuntimeError:  # no folder for the cache can be written
        return _compiled(function)


# The loops below load and compute first and select then, also by `|` instead of `or`: LLVM does not vectorise a branch
# for AVX2, which made some of them 8 to 14 times as slow.


@_kernel
def sums(x: Rows, shift: Rows, total: Rows, total_of_squares: Rows) -> None:
    """Add x - shift and its square to the fp64 totals."""
    n_rows, n_channels = x.shape
    part, part_of_squares = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
    for start in range(0, n_rows, BLOCK_ROWS):
        part[:] = _ZERO
        part_of_squares[:] = _ZERO
        for row in range(start, min(start + BLOCK_ROWS, n_rows)):
            for channel in range(n_channels):
                number = _load(x[row, channel]) - shift[channel]
                part[channel] += number
                part_of_squares[channel] += number * number
        total += part
        total_of_squares += part_of_squares


@_kernel
def forward(x: Rows, scale: Rows, shift: Rows, keep: Rows, y: Rows) -> None:
    """Set y = max(scale · x + shift, 0) where `keep` is -1, otherwise 0. An empty `keep` keeps all units."""
    (n_rows, n_channels), like = x.shape, x[0, 0]
    if keep.size == 0:
        for row in range(n_rows):
            for channel in range(n_channels):
                number = _load(x[row, channel]) * scale[channel] + shift[channel]
                y[row, channel] = _store(_ZERO if number < _ZERO else number, like)
    else:
        for row in range(n_rows):
            for channel in range(n_channels):
                number = _load(x[row, channel]) * scale[channel] + shift[channel]
                number = _ZERO if (number < _ZERO) | (keep[row, channel] == 0) else number
                y[row, channel] = _store(number, like)


@_kernel
def gradient_sums(x: Rows, mean: Rows, y: Rows, dy: Rows, total: Rows, total_of_products: Rows) -> None:
    """Add dy and dy · (x - mean), where y is not 0, to the fp64 totals."""
    n_rows, n_channels = x.shape
    part, part_of_products = np.empty(n_channels, np.float32), np.empty(n_channels, np.float32)
    for start in range(0, n_rows, BLOCK_ROWS):
        part[:] = _ZERO
        part_of_products[:] = _ZERO
        for row in range(start, min(start + BLOCK_ROWS, n_rows)):
            for channel in range(n_channels):
                gradient = _load(dy[row, channel])
                gradient = _ZERO if y[row, channel] == 0 else gradient
                part[channel] += gradient
                part_of_products[channel] += gradient * (_load(x[row, channel]) - mean[channel])
        total += part
        total_of_products += part_of_products


@_kernel
def backward(x: Rows, y: Rows, dy: Rows, of_dy: Rows, of_x: Rows, constant: Rows, dx: Rows) -> None:
    """Set dx = of_dy · dy + of_x · x + constant, where dy counts as 0 if y is 0."""
    (n_rows, n_channels), like = x.shape, x[0, 0]
    for row in range(n_rows):
        for channel in range(n_channels):
            gradient = _load(dy[row, channel])
            gradient = _ZERO if y[row, channel] == 0 else gradient
            number = of_dy[channel] * gradient + of_x[channel] * _load(x[row, channel]) + constant[channel]
            dx[row, channel] = _store(number, like)
