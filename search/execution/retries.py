"""Whose fault it is that a trial broke off, and whether it goes on."""

import re
from collections import Counter

MAX_RETRIES = 2
# A trial that takes every machine down with it must end some time.
MAX_NODES_LOST = 10
# What Ray says where the machine is gone or out of reach, and not only the worker.
_NODE_LOST = re.compile(r"its node has died|the actor's node was|is unavailable: |node it was running on is dead")


class RetryCount:
    """Counts how often each trial or run of a session broke off, and by whose fault.

    A worker that fails is the trial's own doing, and tried again `MAX_RETRIES` times. A machine that goes away is
    not, and does not use those up.
    """

    def __init__(self) -> None:
        self._faults: Counter[str] = Counter()
        self._nodes_lost: Counter[str] = Counter()
        # Failures that Ray has forgotten.
        self._before: Counter[str] = Counter()

    def begins(self, name: str) -> None:
        """A trial or run is given to Ray, which counts its failures from 0: for the first time, or after it gave up."""
        self._before[name] = self._faults[name] + self._nodes_lost[name]

    def goes_on(self, name: str, failure: str) -> bool:
        """Take in that a trial broke off.

        Args:
            name: its own.
            failure: what Ray says of it.

        Returns:
            Whether it is to be tried again.
        """
        if node_was_lost(failure):
            self._nodes_lost[name] += 1
            return self._nodes_lost[name] <= MAX_NODES_LOST
        self._faults[name] += 1
        return self._faults[name] <= MAX_RETRIES

    def of(self, name: str) -> int:
        """How many failures of any kind Ray is to put up with since it was given this: it counts all of them alike."""
        return max(0, MAX_RETRIES + min(self._nodes_lost[name], MAX_NODES_LOST) - self._before[name])


def node_was_lost(failure: str) -> bool:
    """Whether Ray says that the machine, and not only the worker, is gone or out of reach."""
    return _NODE_LOST.search(failure) is not None
