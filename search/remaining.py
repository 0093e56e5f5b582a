"""What a running search has still to train, and how long that takes. Pure functions of the history."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from search import confirmation
from search.estimates import expected_epochs_left, passing_shares, seconds_left
from search.records import History, Trial
from spaces.schema import Space

# The first epochs of each worker are slow; the latest ones say more of what is to come.
N_RECENT = 20


@dataclass(frozen=True, slots=True)
class Remaining:
    """Epochs that are left.

    Attributes:
        of_trials: expected, of each trial that can go on or is still to come.
        of_runs: of each fresh run that goes on or is still to come, if nobody is tied.
    """

    of_trials: tuple[float, ...]
    of_runs: tuple[float, ...]

    def seconds(self, epoch_s: float, trials_at_once: int) -> float:
        """Until all of it is trained, in `trials_at_once` places, at `epoch_s` an epoch."""
        return seconds_left([*self.of_trials, *self.of_runs], epoch_s, trials_at_once)


def remaining(history: History, space: Space) -> Remaining:
    """What a search is expected to train yet."""
    search = space.search
    passing = passing_shares(search.trials, space.rung_epochs, search.reduction_factor, search.explore)
    running = [_epochs_left_of(trial, space, passing) for trial in history.unfinished]
    whole = search.explore * space.training.max_epochs
    unstarted = whole + (1 - search.explore) * expected_epochs_left(0, space.rung_epochs, passing)
    n_unstarted = max(0, search.trials - len(history.counting))
    return Remaining((*running, *[unstarted] * n_unstarted), _epochs_left_of_runs(history, space, sum(running)))


def recent_epoch_s(history: History) -> float | None:
    """Seconds that the latest epochs took, on average; None before the first."""
    latest_trials = history.results_in_order[-N_RECENT:]
    latest_runs = chain.from_iterable(run.epochs for run in list(history.runs.values())[-N_RECENT:])
    latest = sorted([*latest_trials, *latest_runs], key=lambda epoch: epoch.at)
    return mean_of_latest([epoch.seconds for epoch in latest])


def mean_of_latest(epoch_s: Sequence[float]) -> float | None:
    recent = epoch_s[-N_RECENT:]
    return sum(recent) / len(recent) if recent else None


def _epochs_left_of(trial: Trial, space: Space, passing: Sequence[float]) -> float:
    if trial.baseline or trial.explored:
        return space.training.max_epochs - trial.n_epochs
    return expected_epochs_left(trial.n_epochs, space.rung_epochs, passing)


def _epochs_left_of_runs(history: History, space: Space, epochs_to_come: float) -> tuple[float, ...]:
    max_epochs = space.training.max_epochs
    begun = [float(max_epochs - run.n_epochs) for run in history.unfinished_runs]
    total = confirmation.expected_epochs(history.n_epochs + epochs_to_come, space)
    n_to_come = max(0, round(total / max_epochs) - len(history.runs))
    if history.runs and not confirmation.next_run(history, space):
        n_to_come = 0  # the order was clear early
    return (*begun, *[float(max_epochs)] * n_to_come)
