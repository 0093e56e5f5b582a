"""The order of trials by the results of the search, best first. Pure functions."""

import math

from search.experiment.events import EpochDone
from search.experiment.history import Trial
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
