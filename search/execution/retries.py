"""Counts failures of trials by cause, and decides whether a trial is retried."""

import re
from collections import Counter

MAX_RETRIES = 2
# Bound for a trial that crashes every machine.
MAX_NODES_LOST = 10
# Ray's words for a machine, not only a worker, that is gone or out of reach.
_NODE_LOST = re.compile(r"its node has died|the actor's node was|is unavailable: |node it was running on is dead")


class RetryCount:
    """Counts the failures of each trial and replicate of a session.

    A failed worker counts against the trial, which is retried `MAX_RETRIES` times. The loss of a machine does not.
    """

    def __init__(self) -> None:
        self._faults: Counter[str] = Counter()
        self._nodes_lost: Counter[str] = Counter()
        # Failures before the last dispatch, which Ray does not count.
        self._before: Counter[str] = Counter()

    def record_dispatch(self, name: str) -> None:
        """Record that a trial or replicate is dispatched to Ray, which counts its failures from 0."""
        self._before[name] = self._faults[name] + self._nodes_lost[name]

    def record_failure(self, name: str, failure: str) -> bool:
        """Record a failure.

        Args:
            name: of the trial or replicate.
            failure: Ray's message.

        Returns:
            Whether to retry.
        """
        if node_was_lost(failure):
            self._nodes_lost[name] += 1
            return self._nodes_lost[name] <= MAX_NODES_LOST
        self._faults[name] += 1
        return self._faults[name] <= MAX_RETRIES

    def max_failures(self, name: str) -> int:
        """Failures that Ray tolerates since the last dispatch. Node losses are added, because Ray counts both."""
        return max(0, MAX_RETRIES + min(self._nodes_lost[name], MAX_NODES_LOST) - self._before[name])


def node_was_lost(failure: str) -> bool:
    """Whether Ray's message says that the machine, not only the worker, is gone or out of reach."""
    return _NODE_LOST.search(failure) is not None
