"""The budget of a search: how many trials it may still start. Pure functions."""

from search.experiment.events import ProposedBy
from search.experiment.history import History
from spaces.parameters import Hyperparameters
from spaces.schema import Space


def epochs_trained(history: History) -> int:
    """Number of epochs that count towards `search.epoch_budget`: without excluded trials and replicates."""
    return sum(trial.n_epochs for trial in history.counting)


def is_used(history: History, space: Space) -> bool:
    """Whether the epoch budget is used; False without an epoch budget."""
    budget = space.search.epoch_budget
    return budget is not None and epochs_trained(history) >= budget


def n_to_start(history: History, space: Space) -> int:
    """Number of trials that may still be started; 0 after the epoch budget is used, or if the user has finished it."""
    if history.is_finishing or is_used(history, space):
        return 0
    return max(0, space.search.most_trials + len(history.added) - len(history.counting))


def given_next(history: History, space: Space) -> tuple[Hyperparameters, ProposedBy] | None:
    """The next configuration that the user or the memory gives, and its origin; None: the sampler proposes."""
    if space.baseline not in {trial.config for trial in history.counting if trial.baseline}:
        # Again where the space was changed, and the baseline with it.
        return space.baseline, "baseline"
    tried = {trial.config for trial in history.counting}
    if added := [config for config in history.added if space.contains(config) and config not in tried]:
        return added[0], "steer"
    if listed := [config for config in space.try_first if config not in tried]:
        return listed[0], "try_first"
    recalled = [config for config in history.recalled if space.contains(config) and config not in tried]
    return (recalled[0], "memory") if recalled else None


def is_tried(config: Hyperparameters, history: History) -> bool:
    """Whether a trial has this configuration, or will have it because the user added it."""
    return config in history.added or any(trial.config == config for trial in history.counting)


def trials_limit(history: History, space: Space) -> int | None:
    """Number of trials after which none is started; None without such a limit, or after the user's `finish`."""
    limited = space.search.trials is not None and not history.is_finishing
    return space.search.most_trials + len(history.added) if limited else None


def most_epochs_over(space: Space, trials_at_once: int) -> int:
    """Upper bound of the epochs that a search trains beyond its epoch budget, without replicates.

    When the budget is reached, one trial has just finished an epoch, and the other running trials may have trained
    none; they continue to the end.
    """
    return trials_at_once * space.training.max_epochs - 1


def progress_text(history: History, space: Space) -> str:
    """Progress of a search: `12 of 32 trials ended`, or `12 trials ended, 140 of 300 epochs trained`."""
    trials, epochs = trials_limit(history, space), space.search.epoch_budget
    of_trials = "" if trials is None else f" of {trials}"
    of_epochs = "" if epochs is None else f", {epochs_trained(history)} of {epochs} epochs trained"
    return f"{history.n_ended}{of_trials} trials ended{of_epochs}"
