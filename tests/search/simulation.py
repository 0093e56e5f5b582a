"""A search without Ray: the real state, fed with made-up learning curves, one epoch at a time."""

import random
from collections.abc import Callable

from search.records import EpochDone
from search.state import SearchState
from spaces import Hyperparameters

Curve = Callable[[int, Hyperparameters, int], float]


def accuracy(trial: int, config: Hyperparameters, epoch: int) -> float:
    """A curve that rises with the epochs and is best near lr 0.03 and without flips."""
    distance = abs(config.lr - 0.03) / 0.5 + config.flip_p
    return round(max(0.05, 0.95 - distance) * (1 - 0.8 ** (epoch + 1)), 6)


def result(trial: int, epoch: int, value: float, loss: float = 1.0) -> EpochDone:
    return EpochDone(trial, epoch, 0.01, loss, value, loss, value, 0.5, 0.1, 100.0 * trial + epoch)


def simulate(
    state: SearchState,
    seed: int,
    max_results: int | None = None,
    trials_at_once: int = 2,
    curve: Curve = accuracy,
) -> None:
    """Run until the search ends, or breaks off after `max_results`; workers take turns by `seed`."""
    turns = random.Random(seed)
    running: dict[int, tuple[Hyperparameters, int]] = {}
    n_results = 0
    while True:
        while len(running) < trials_at_once and (assignment := state.next_assignment()):
            running[assignment.trial] = (assignment.config, assignment.n_epochs_known)
        if not running or n_results == max_results:
            return
        number = turns.choice(sorted(running))
        config, epoch = running[number]
        goes_on = state.record(result(number, epoch + 1, curve(number, config, epoch + 1)))
        running[number] = (config, epoch + 1)
        if not goes_on:
            del running[number]
        n_results += 1
