"""Random masks for dropout, drawn from a pool instead of one random number per unit and step."""

import random

import numpy as np
import torch
from numpy.typing import NDArray

# Size of the pool: 16 MB as int16, several times the largest activation of a batch of 64 images of 32 x 32.
POOL_UNITS = 2**23
# Most units of one stretch, which is a slice of the pool at a random offset.
STRETCH_UNITS = POOL_UNITS // 2
# The pool is drawn again after this many times its size has been handed out.
SERVINGS = 64


class DropoutNoise:
    """Draws dropout masks in which each unit is kept with probability 1 - p.

    `bernoulli_` takes a quarter of a training step on a CPU. This class fills a pool of draws once, and gives each
    layer in each step a stretch of it at a random offset. Draws within a stretch are independent; for a given unit,
    two stretches use the same draw with probability about 2⁻²². The pool is drawn again every few dozen steps.

    Args:
        p: probability that a unit is zeroed, in [0, 1), rounded to a multiple of 2⁻¹⁶.
    """

    def __init__(self, p: float) -> None:
        self.p = p
        self._n_dropped_of_65536 = round(p * 2**16)
        self._pool: NDArray[np.int16] | None = None
        self._generator: torch.Generator | None = None
        self._offsets = random.Random()
        self._n_served = 0

    def reseed(self, seed: int) -> None:
        """Restart the stream of draws from `seed`, in [0, 2^63)."""
        self._generator = torch.Generator().manual_seed(seed)
        self._offsets = random.Random(seed)
        self._pool = None

    def draw(self, n_units: int) -> NDArray[np.int16]:
        """Draw the mask of `n_units` units, at most `STRETCH_UNITS`.

        Returns:
            (n_units,) int16: -1 for a kept unit, 0 for a zeroed unit. This is a view of the pool: do not write to
            it, and copy it to keep it.
        """
        if self._pool is None or self._n_served >= SERVINGS * POOL_UNITS:
            self._pool, self._n_served = self._new_pool(), 0
        offset = self._offsets.randrange(POOL_UNITS - n_units + 1)
        self._n_served += n_units
        return self._pool[offset : offset + n_units]

    def _new_pool(self) -> NDArray[np.int16]:
        if self._generator is None:
            # Without a call of `reseed`, follow torch's global generator, as nn.Dropout does.
            self.reseed(int(torch.randint(2**62, ()).item()))
        words = torch.empty(POOL_UNITS // 4, dtype=torch.int64)
        words.random_(-(2**63), None, generator=self._generator)
        kept = words.view(torch.int16) >= self._n_dropped_of_65536 - 2**15
        return kept.to(torch.int16).neg_().numpy()
