"""The order of trials by the search, best first: by forecasts, and by results. Pure functions."""

import math

from search.experiment.events import EpochDone
from search.experiment.history import History, Trial
from search.policy.forecasts import forecasts
from trainable.metric import Metric

# Lower sorts first. A stopped trial may look better than a completed one, but only up to where it stopped.
_STATUS_ORDER = {"completed": 0, "stopped": 1, "running": 1, "failed": 2, "diverged": 3}


def result_order(trial: int, result: EpochDone, metric: Metric) -> tuple[float, float, int]:
    """Sort key of results of the same epoch, best first: score, then validation loss, then trial number.

    Args:
        trial: number of the trial.
        result: of the trial; a loss that is not finite sorts last.
        metric: of the search.
    """
    loss = result.validation_loss
    return (-metric.score(result), loss if math.isfinite(loss) else math.inf, trial)


def search_order(trial: Trial) -> tuple[float, ...]:
    """Sort key of trials, best first.

    Trials that count come before excluded ones; completed trials before stopped and running ones, then failed, then
    diverged ones. Trials that did not complete are ordered by their number of epochs. Ties are broken by
    `result_order` of the last epoch; a trial without a finite result comes last.
    """
    has_result = trial.last is not None and not trial.last.diverged
    worst = (math.inf, math.inf, trial.number)
    result = result_order(trial.number, trial.last, trial.metric) if trial.last and has_result else worst
    n_epochs = 0 if trial.status == "completed" else -trial.n_epochs
    return (trial.excluded, _STATUS_ORDER[trial.status], n_epochs, *result)


def best_first(history: History) -> list[Trial]:
    """All trials, best first, without regard to replicates.

    Trials that count come before excluded ones; then failed, then diverged ones are last. Trials at chance come after
    others. The rest is ordered by forecast, whether a trial has completed or not; ties, and trials without a forecast,
    by `search_order`.
    """
    foreseen, chance = forecasts(history), history.chance

    def key(trial: Trial) -> tuple[float, ...]:
        forecast, score = foreseen.get(trial.number), trial.last_score
        at_chance = chance is not None and score is not None and score <= chance
        group = 0 if trial.can_win else 2 if trial.status == "diverged" else 1
        return (trial.excluded, group, at_chance, -forecast.mean if forecast else math.inf, *search_order(trial))

    return sorted(history.trials.values(), key=key)
