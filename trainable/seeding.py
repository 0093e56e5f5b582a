"""Random streams: each is a pure function of the experiment's seed, the run and the epoch.

No draw depends on the state that earlier draws left in a global generator. A restored run therefore makes the same
draws as an uninterrupted run, and checkpoints hold no generator state.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """Purpose of a run. Runs with different purposes never share a stream."""

    TRIAL = 0
    RETRAINING = 1
    CONFIRMATION = 2


class Stream(IntEnum):
    WEIGHTS = 0
    ORDER = 1
    AUGMENTATION = 2
    DROPOUT = 3


@dataclass(frozen=True, slots=True)
class RunSeed:
    """Names the random streams of one training run.

    Attributes:
        number: number of the trial, of the retraining, or of the block of replicates. Replicates in a block share
            their streams, so that their results compare pairwise.
    """

    experiment: int
    number: int = 0
    purpose: Purpose = Purpose.TRIAL

    def stream(self, stream: Stream, epoch: int = 0) -> int:
        """Seed of one stream in one epoch, in [0, 2^63).

        Computed by numpy's SeedSequence, whose outputs for different entropies are independent.
        """
        entropy = [self.experiment, int(self.purpose), self.number, int(stream), epoch]
        word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return int(word >> np.uint64(1))
