"""Which failures use up a trial's retries, by the words that Ray has for them."""

from search.execution.retries import MAX_NODES_LOST, MAX_RETRIES, RetryCount, node_was_lost

NODE_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: TrialTrainable\n"
    "The actor died because its node has died. Node Id: 0123abcd\n"
    "\tthe actor's node was terminated unexpectedly: health check failed due to missing too many heartbeats"
)
NODE_SILENT = "The actor 0123 is unavailable: IOError. The task may or may not have been executed on the actor."
WORKER_DIED = (
    "The actor died unexpectedly before finishing this task.\n\tclass_name: TrialTrainable\n"
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR"
)


def test_a_lost_node_is_told_from_a_lost_worker() -> None:
    assert node_was_lost(NODE_DIED)
    assert node_was_lost(NODE_SILENT)
    assert not node_was_lost(WORKER_DIED)
    assert not node_was_lost("ray.exceptions.RayTaskError(ValueError): no")
    assert not node_was_lost("")


def test_a_worker_s_faults_are_forgiven_so_often_and_no_more() -> None:
    retries = RetryCount()
    is_retried = [retries.record_failure("trial_0000", WORKER_DIED) for _ in range(MAX_RETRIES + 1)]
    assert is_retried == [True] * MAX_RETRIES + [False]
    assert retries.record_failure("trial_0001", WORKER_DIED), "each trial has its own"


def test_lost_nodes_do_not_use_up_the_retries_of_a_worker() -> None:
    retries = RetryCount()
    assert all(retries.record_failure("trial_0000", WORKER_DIED) for _ in range(MAX_RETRIES))
    assert all(retries.record_failure("trial_0000", NODE_DIED) for _ in range(3))
    assert retries.max_failures("trial_0000") == MAX_RETRIES + 3, "Ray counts both alike"
    assert not retries.record_failure("trial_0000", WORKER_DIED)


def test_a_trial_that_takes_every_node_with_it_ends() -> None:
    retries = RetryCount()
    assert all(retries.record_failure("trial_0000", NODE_DIED) for _ in range(MAX_NODES_LOST))
    assert not retries.record_failure("trial_0000", NODE_DIED)


def test_what_ray_gives_up_and_is_given_again_has_no_new_retries() -> None:
    retries = RetryCount()
    retries.record_dispatch("trial_0000")
    assert retries.max_failures("trial_0000") == MAX_RETRIES
    retries.record_failure("trial_0000", WORKER_DIED)
    retries.record_failure("trial_0000", NODE_DIED)
    retries.record_dispatch("trial_0000")
    assert retries.max_failures("trial_0000") == MAX_RETRIES - 1, "one by its own fault"
    retries.record_failure("trial_0000", NODE_DIED)
    assert retries.max_failures("trial_0000") == MAX_RETRIES, "which Ray counts from 0 again"
