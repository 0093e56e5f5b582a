"""A search without Ray: the real state, fed with made-up learning curves, one epoch at a time."""

import math
import random
from collections.abc import Callable

from search.experiment.events import EpochDone, ReplicateEpochDone
from search.policy.state import Assignment, SearchState
from spaces import Hyperparameters

Curve = Callable[[int, Hyperparameters, int], float]


def accuracy(trial: int, config: Hyperparameters, epoch: int) -> float:
    """A curve that rises with the epochs and is best near lr 0.03 and without flips."""
    distance = abs(config.lr - 0.03) / 0.5 + config.flip_p
    return round(max(0.05, 0.95 - distance) * (1 - 0.8 ** (epoch + 1)), 6)


def result(trial: int, epoch: int, value: float, loss: float = 1.0) -> EpochDone:
    share = 0.0 if math.isnan(value) else min(max(value, 0.0), 1.0)
    at = 100.0 * trial + epoch
    return EpochDone(trial, epoch, 0.01, loss, share, loss, share, 0.5, 0.1, at, share**2, share**3)


def numbers(state: SearchState, n: int) -> list[int | None]:
    """Numbers of the next `n` assignments; None where nothing is dispatched."""
    assignments = [state.next_assignment() for _ in range(n)]
    return [assignment and assignment.number for assignment in assignments]


def simulate(
    state: SearchState,
    seed: int = 0,
    max_results: int | None = None,
    trials_at_once: int = 2,
    curve: Curve = accuracy,
    replicate_curve: Callable[[int, int, int], float] = lambda trial, block, epoch: 0.5 + trial / 1000 + block / 100,
) -> None:
    """Run until the search ends, or breaks off after `max_results`; workers take turns by `seed`."""
    turns = random.Random(seed)
    running: dict[str, tuple[Assignment, int]] = {}
    n_results = 0
    while True:
        while len(running) < trials_at_once and (assignment := state.next_assignment()):
            running[assignment.name] = (assignment, assignment.n_epochs_known)
        if not running or n_results == max_results:
            return
        name = turns.choice(sorted(running))
        assignment, epoch = running[name][0], running[name][1] + 1
        running[name] = (assignment, epoch)
        if assignment.kind == "trial":
            goes_on = state.record(result(assignment.number, epoch, curve(assignment.number, assignment.config, epoch)))
        else:
            value = replicate_curve(assignment.trial, assignment.seed_number, epoch)
            goes_on = state.record_run(run_result(assignment.number, epoch, value))
        if not goes_on:
            del running[name]
        n_results += 1


def run_result(run: int, epoch: int, value: float, loss: float = 1.0) -> ReplicateEpochDone:
    at = 10_000.0 + 100 * run + epoch
    return ReplicateEpochDone(run, epoch, loss, loss, value, 0.5, 0.1, at, value**2, value**3)
