"""Which units dropout keeps, without a random number per unit and step."""

import random

import numpy as np
import torch
from numpy.typing import NDArray

# 16 MB: several times the largest activation of a batch of 64 images of 32 x 32.
POOL_UNITS = 2**23
# A layer's units are served from stretches of the pool, each from an offset of its own.
STRETCH_UNITS = POOL_UNITS // 2
# The pool is drawn afresh when it has been served so many times over.
SERVINGS = 64


class DropoutNoise:
    """Draws which units are kept: each with probability 1 - p.

    `bernoulli_` is a serial generator and takes a quarter of a training step on a CPU. Here the draws are made once
    for a pool, and each layer in each step gets a stretch of it from a random offset. Within a stretch the draws
    are independent; at any one unit, two stretches share their draw with probability about 2⁻²², and the pool is
    renewed every few dozen steps.

    Args:
        p: probability of not being kept, in [0, 1); to within 2⁻¹⁶.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self._n_dropped_of_65536 = round(p * 2**16)
        self._pool: NDArray[np.int16] | None = None
        self._generator: torch.Generator | None = None
        self._offsets = random.Random()
        self._n_served = 0

    @property
    def most_at_once(self) -> int:
        """Units that one `draw` may ask for."""
        return STRETCH_UNITS

    def reseed(self, seed: int) -> None:
        """Start the stream of draws that belongs to `seed`, in [0, 2^63)."""
        self._generator = torch.Generator().manual_seed(seed)
        self._offsets = random.Random(seed)
        self._pool = None

    def draw(self, n_units: int) -> NDArray[np.int16]:
        """(n_units,) of -1 for a unit that is kept and 0 for one that is not; read only, and not for keeping."""
        if self._pool is None or self._n_served >= SERVINGS * POOL_UNITS:
            self._pool, self._n_served = self._new_pool(), 0
        offset = self._offsets.randrange(POOL_UNITS - n_units + 1)
        self._n_served += n_units
        return self._pool[offset : offset + n_units]

    def _new_pool(self) -> NDArray[np.int16]:
        if self._generator is None:
            # Not reseeded by a training loop: follow torch's global generator, as nn.Dropout does.
            self.reseed(int(torch.randint(2**62, ()).item()))
        words = torch.empty(POOL_UNITS // 4, dtype=torch.int64)
        words.random_(-(2**63), None, generator=self._generator)
        kept = words.view(torch.int16) >= self._n_dropped_of_65536 - 2**15
        return kept.to(torch.int16).neg_().numpy()
