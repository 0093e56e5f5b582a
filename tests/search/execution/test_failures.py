"""Failures in words, and which of them use up a trial's retries."""

import errno

import pytest

from search.execution.failures import (
    MAX_NODES_LOST,
    MAX_RETRIES,
    RetryCount,
    is_full_disk,
    reason_in_words,
    tells_of_full_disk,
)

WORKER_DIED = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: TrialTrainable
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process
is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."""
RAY_OOM = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node was 15.2GB / 16.0GB (0.95), which exceeds the memory usage threshold of 0.95."""
NODE_DIED = """The actor died unexpectedly before finishing this task.\n\tclass_name: TrialTrainable
The actor died because its node has died. Node Id: 0123abcd
\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"""
NODE_SILENT = "The actor 0123 is unavailable: IOError. The task may or may not have been executed on the actor."
CUDA = "ray.exceptions.RayTaskError(OutOfMemoryError): torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"
FULL = "OSError: [Errno 28] No space left on device: '/somewhere'"
OF_THE_TRIAL = "Traceback:\n  in f\nValueError: 3 is not 4\n\n"


@pytest.mark.parametrize(
    ("trace", "words", "is_node"),
    [
        (WORKER_DIED, "its worker process died (it was killed, or crashed)", False),
        (RAY_OOM, "the machine ran out of memory; lower `training.batch_size` or `resources.trials_at_once`", False),
        (NODE_DIED, "its machine was lost", True),
        (NODE_SILENT, "its machine does not answer", True),
        (
            CUDA,
            "the GPU ran out of memory; lower `resources.trials_per_gpu`, then `dataset.train_limit` or "
            "`training.batch_size`",
            False,
        ),
        (FULL, "the disk is full", False),
        (OF_THE_TRIAL, "ValueError: 3 is not 4", False),
        ("", "the worker failed without saying why", False),
    ],
)
def test_a_failure_is_told_in_one_line_and_retried_twice_or_for_ten_lost_machines(
    trace: str, words: str, is_node: bool
) -> None:
    assert reason_in_words(trace) == words
    retries, n_retries = RetryCount(), MAX_NODES_LOST if is_node else MAX_RETRIES
    is_retried = [retries.record_failure("trial_0000", trace) for _ in range(n_retries + 1)]
    assert is_retried == [True] * n_retries + [False]
    assert retries.record_failure("trial_0001", trace), "each trial has its own"


def test_lost_machines_do_not_use_up_the_retries_of_a_worker() -> None:
    retries = RetryCount()
    told = [retries.record_failure("trial_0000", trace) for trace in [WORKER_DIED, NODE_DIED, NODE_DIED, WORKER_DIED]]
    assert all(told)
    assert not retries.record_failure("trial_0000", WORKER_DIED)


def test_a_full_disk_is_known_by_its_error_or_by_what_a_worker_wrote() -> None:
    assert tells_of_full_disk(FULL)
    assert not tells_of_full_disk(CUDA)
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise EOFError("Ran out of input") from None
    except EOFError as error:
        assert is_full_disk(error), "what Ray makes of it"
    assert is_full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
    assert not is_full_disk(None)
