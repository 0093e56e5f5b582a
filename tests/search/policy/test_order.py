from dataclasses import replace
from math import inf, nan
from typing import Any

from search.experiment.events import EndStatus, TrialEnded
from search.experiment.history import Trial
from search.policy.forecasts import search_order
from spaces import Hyperparameters
from tests.support.simulation import result


def trial(number: int, *accuracies: float, status: EndStatus | None = "completed", **changes: Any) -> Trial:
    epochs = [replace(result(number, epoch, accuracy), **changes) for epoch, accuracy in enumerate(accuracies, 1)]
    end = TrialEnded(number, status, "", 0.0) if status else None
    return Trial(number, {}, Hyperparameters(), number == 0, 0.0, epochs, end)


def test_trials_are_ordered_by_status_then_epochs_then_result() -> None:
    best_first = [
        trial(9, 0.1, 0.6),
        trial(8, 0.1, 0.5, validation_loss=0.5),
        trial(2, 0.1, 0.5),
        trial(3, 0.1, 0.5),
        trial(1, 0.1, 0.5, validation_loss=nan),
        trial(7, 0.1, 0.3, status=None),
        trial(0, 0.9, status="stopped"),
        trial(6, 0.8, status=None),
        trial(4, status=None),
        trial(10, 0.9, status="failed"),
        trial(5, 0.9, status="diverged"),
        replace(trial(11, 0.99), excluded=True),
    ]
    assert sorted(reversed(best_first), key=search_order) == best_first
    assert search_order(trial(2, 0.5))[-3:] == (-0.5, 1.0, 2)
    diverged = trial(1, 0.9, status="diverged", train_loss=nan)
    assert search_order(diverged)[-3:] == (inf, inf, 1), "a diverged epoch has no result"
