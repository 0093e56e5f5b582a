"""What a search may spend: how many trials it starts, and when it stops to start any. Pure functions."""

from search.experiment.history import History
from spaces.schema import Space


def epochs_trained(history: History) -> int:
    """Epochs that count towards `search.epoch_budget`: of trials that count, and not of replicates."""
    return sum(trial.n_epochs for trial in history.counting)


def is_used(history: History, space: Space) -> bool:
    """Whether the epochs that a search may train have been trained; never without an epoch budget."""
    budget = space.search.epoch_budget
    return budget is not None and epochs_trained(history) >= budget


def n_to_start(history: History, space: Space) -> int:
    """How many trials may be started yet; by their number alone while the epoch budget is not used."""
    if is_used(history, space):
        return 0
    return max(0, space.search.most_trials - len(history.counting))


def most_epochs_over(space: Space, trials_at_once: int) -> int:
    """Epochs by which a search may overrun its epoch budget at most, its replicates left out.

    When the budget is reached, one trial has just ended an epoch, and the others that run may have trained none.
    They go on to the next rung where ASHA promotes, for it promotes nothing then; else to the end.
    """
    ends = space.rung_epochs
    if space.search.asha != "promote":
        return trials_at_once * ends[-1] - 1
    furthest = max(end - start for start, end in zip((0, *ends), ends, strict=False))
    # The baseline does not pause, and chance may exempt whoever runs.
    n_exempt = trials_at_once if space.search.audit_fraction else 1
    return n_exempt * ends[-1] + (trials_at_once - n_exempt) * furthest - 1


def progress_text(history: History, space: Space) -> str:
    """How far a search has come: `12 of 32 trials ended`, or `12 trials ended, 140 of 300 epochs trained`."""
    trials, epochs = space.search.trials, space.search.epoch_budget
    of_trials = "" if trials is None else f" of {trials}"
    of_epochs = "" if epochs is None else f", {epochs_trained(history)} of {epochs} epochs trained"
    return f"{history.n_ended}{of_trials} trials ended{of_epochs}"
