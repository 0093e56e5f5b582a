"""Random streams: each is a pure function of the experiment's seed, the run and the epoch.

Nothing is ever drawn from a global generator's leftover state, so a run that was stopped and restored
draws what it would have drawn: there is no generator state to save.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a run is for; runs of different purposes never share a stream."""

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
        experiment: the experiment's seed.
        number: the trial's number, or that of the retraining, or that of the confirmation's block, whose runs share
            their streams so that they compare.
        purpose: what the run is for.
    """

    experiment: int
    number: int = 0
    purpose: Purpose = Purpose.TRIAL

    def stream(self, stream: Stream, epoch: int = 0) -> int:
        """A seed for one stream in one epoch, in [0, 2^63).

        Source: numpy's SeedSequence, whose outputs for different entropies are independent.
        """
        entropy = [self.experiment, int(self.purpose), self.number, int(stream), epoch]
        word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
        return int(word >> np.uint64(1))
