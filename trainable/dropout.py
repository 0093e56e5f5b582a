"""ReLU and dropout in one, without a random number per unit and step."""

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# 16 MB in bf16: several times the largest activation of a batch of 64 images of 32 x 32.
POOL_UNITS = 2**23
# A layer's units are served from stretches of the pool, each from an offset of its own.
STRETCH_UNITS = POOL_UNITS // 2
# The pool is drawn afresh when it has been served so many times over.
SERVINGS = 64


class DropoutNoise:
    """The factors that dropout multiplies with: 1 / (1 - p) with probability 1 - p, else 0.

    `bernoulli_` is a serial generator and takes a quarter of a training step on a CPU. Here the factors are
    drawn once into a pool, and each layer in each step multiplies with a stretch of it from a random offset.
    Within a stretch the draws are independent; two stretches share draws with probability about 1 / 2²² at
    any one unit, and the pool is renewed every few dozen steps.

    Args:
        p: probability of 0, in [0, 1); to within 2⁻¹⁶.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self._pools: dict[torch.dtype, Tensor] = {}
        self._generator: torch.Generator | None = None
        self._offsets = random.Random()
        self._n_served = 0

    def reseed(self, seed: int) -> None:
        """Start the stream of draws that belongs to `seed`, in [0, 2^63)."""
        self._generator = torch.Generator().manual_seed(seed)
        self._offsets = random.Random(seed)
        self._pools.clear()

    def multiply_(self, units: Tensor) -> None:
        """Multiply `units` in place; a dense CPU tensor of any memory format, floating point."""
        in_memory_order = torch.as_strided(units, (units.numel(),), (1,))
        for stretch in torch.split(in_memory_order, STRETCH_UNITS):
            pool = self._pool(stretch.dtype)
            offset = self._offsets.randrange(POOL_UNITS - stretch.numel() + 1)
            stretch.mul_(pool[offset : offset + stretch.numel()])
            self._n_served += stretch.numel()

    def scale(self, dtype: torch.dtype) -> float:
        """1 / (1 - p), as `dtype` rounds it."""
        return torch.tensor(1 / (1 - self.p), dtype=dtype).item()

    def _pool(self, dtype: torch.dtype) -> Tensor:
        if self._generator is None:
            # Not reseeded by a training loop: follow torch's global generator, as nn.Dropout does.
            self.reseed(int(torch.randint(2**62, ()).item()))
        if self._n_served >= SERVINGS * POOL_UNITS:
            self._pools.clear()
        if dtype not in self._pools:
            self._pools[dtype] = self._draw(dtype)
            self._n_served = 0
        return self._pools[dtype]

    def _draw(self, dtype: torch.dtype) -> Tensor:
        words = torch.empty(POOL_UNITS // 4, dtype=torch.int64)
        words.random_(-(2**63), None, generator=self._generator)
        n_dropped_of_65536 = min(round(self.p * 2**16), 2**16 - 1)
        kept = words.view(torch.int16) >= n_dropped_of_65536 - 2**15
        return kept.to(dtype).mul_(self.scale(dtype))


class ReluDropout(nn.Module):
    """`nn.ReLU` followed by `nn.Dropout`: the same law, in one module without parameters.

    On a CPU the factors come from `noise`; on CUDA torch's own dropout is fused already and is used.

    Args:
        noise: where the factors come from; one for all layers of a network.
        inplace: overwrite the input while training, as `nn.ReLU(inplace=True)` does.
    """

    def __init__(self, noise: DropoutNoise, inplace: bool = False) -> None:
        super().__init__()
        self.noise = noise
        self.inplace = inplace

    def forward(self, features: Tensor) -> Tensor:
        """Any shape; same shape and dtype."""
        if not self.training or self.noise.p == 0:
            return F.relu(features)
        if features.device.type != "cpu":
            return F.dropout(F.relu(features), self.noise.p)
        # The factors are laid over memory as it lies, which must be without gaps.
        owned = features if self.inplace and _is_dense(features) else features.clone()
        dropped: Tensor = _ReluDropout.apply(owned, self.noise)
        return dropped

    def extra_repr(self) -> str:
        return f"p={self.noise.p}, inplace={self.inplace}"


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, noise: DropoutNoise) -> Tensor:
        units = features.relu_()
        noise.multiply_(units)
        ctx.mark_dirty(features)
        ctx.save_for_backward(units)
        ctx.scale = noise.scale(units.dtype)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (units,) = ctx.saved_tensors
        # A unit is above 0 exactly where it was active and kept: the factors need not be remembered.
        return torch.ops.aten.threshold_backward(gradient, units, 0).mul_(ctx.scale), None


def _is_dense(features: Tensor) -> bool:
    in_channels_last = features.dim() == 4 and features.is_contiguous(memory_format=torch.channels_last)
    return in_channels_last or features.is_contiguous()
