import errno

import pytest

from search.execution.failures import is_full_disk, reason_in_words, tells_of_full_disk

ACTOR_DIED = """ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tclass_name: TrialTrainable
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. There are some potential root causes. (1) The process
is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is called."""
RAY_OOM = """ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.
Memory on the node was 15.2GB / 16.0GB (0.95), which exceeds the memory usage threshold of 0.95."""
NODE_DIED = "ray.exceptions.ActorDiedError: The actor is dead because its node has died. Node Id: abc"
CUDA = "ray.exceptions.RayTaskError(OutOfMemoryError): torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"
FULL = "OSError: [Errno 28] No space left on device: '/somewhere'"


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (ACTOR_DIED, "its worker process died (it was killed, or crashed)"),
        (RAY_OOM, "the machine ran out of memory; lower `training.batch_size` or `resources.trials_at_once`"),
        (NODE_DIED, "its machine was lost"),
        (
            CUDA,
            "the GPU ran out of memory; lower `resources.trials_per_gpu`, then `dataset.train_limit` or "
            "`training.batch_size`",
        ),
        (FULL, "the disk is full"),
        ("Traceback:\n  in f\nValueError: 3 is not 4\n\n", "ValueError: 3 is not 4"),
        ("", "the worker failed without saying why"),
    ],
)
def test_a_failure_is_told_in_one_line(trace: str, words: str) -> None:
    assert reason_in_words(trace) == words


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
