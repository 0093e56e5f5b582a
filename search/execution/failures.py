"""Failures of workers and disks: in words, counted by cause, and whether a trial is retried."""

import errno
import re
import shutil
from collections import Counter
from pathlib import Path

MAX_RETRIES = 2
# Bound for a trial that crashes every machine.
MAX_NODES_LOST = 10
MAX_REASON_LENGTH = 300
# Less free space than this is a full disk: the smallest writes of a search take a few kilobytes.
FULL_BELOW_BYTES = 256 * 1024

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_FULL_DISK_WORDS = re.compile(r"No space left on device|Disk quota exceeded|\[Errno (?:28|122)\]")

# Ray's words for a machine, not only a worker, that is gone or out of reach.
_NODE_LOST = re.compile(r"its node has died|the actor's node was|is unavailable: |node it was running on is dead")

# The first pattern that matches a worker's last message; Ray's messages are long and differ between versions.
_IN_WORDS = (
    (
        re.compile(r"CUDA out of memory|CUDA error: out of memory|torch\.(?:cuda\.)?OutOfMemoryError"),
        "the GPU ran out of memory; lower `resources.trials_per_gpu`, then `dataset.train_limit` or "
        "`training.batch_size`",
    ),
    (
        # Not "OOM killer": Ray lists it as a possible cause of every death.
        re.compile(r"node running low on memory|ray\.exceptions\.OutOfMemoryError"),
        "the machine ran out of memory; lower `training.batch_size` or `resources.trials_at_once`",
    ),
    (_FULL_DISK_WORDS, "the disk is full"),
    (re.compile(r"NodeDiedError|its node has died"), "its machine was lost"),
    # The first message, before Ray gives up a silent machine.
    (re.compile(r"The actor \w+ is unavailable: "), "its machine does not answer"),
    (
        re.compile(r"ActorDiedError|RayActorError|WorkerCrashedError|The actor died|worker process has died"),
        "its worker process died (it was killed, or crashed)",
    ),
)


def reason_in_words(trace: str) -> str:
    """The reason of a worker's failure in one line, from the trace that Ray recorded, which may be empty."""
    for pattern, words in _IN_WORDS:
        if pattern.search(trace):
            return words
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    return lines[-1][:MAX_REASON_LENGTH] if lines else "the worker failed without saying why"


def tells_of_full_disk(trace: str) -> bool:
    """Whether a worker failed because its disk was full."""
    return _FULL_DISK_WORDS.search(trace) is not None


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error or one of its causes is a full disk or an exhausted quota."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            return True
        error = error.__cause__ or error.__context__
    return False


def first_full(*folders: Path) -> Path | None:
    """The first of these folders whose disk is full; None where none is."""
    return next((folder for folder in folders if shutil.disk_usage(folder).free < FULL_BELOW_BYTES), None)


class RetryCount:
    """Counts the failures of each trial and replicate of a session.

    A failed worker counts against the trial, which is retried `MAX_RETRIES` times. The loss of a machine does not.
    """

    def __init__(self) -> None:
        self._faults: Counter[str] = Counter()
        self._nodes_lost: Counter[str] = Counter()

    def record_failure(self, name: str, trace: str) -> bool:
        """Record a failure of a trial or replicate, with Ray's message; returns whether to retry."""
        if _NODE_LOST.search(trace):
            self._nodes_lost[name] += 1
            return self._nodes_lost[name] <= MAX_NODES_LOST
        self._faults[name] += 1
        return self._faults[name] <= MAX_RETRIES
