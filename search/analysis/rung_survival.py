"""Numbers of trials that reached each rung, and passed it, were stopped, failed or wait. A pure function."""

from collections.abc import Iterable
from dataclasses import dataclass

from search.experiment.history import Trial
from search.policy.asha import waits_at_rung
from spaces.schema import Space


@dataclass(frozen=True, slots=True)
class RungSurvival:
    """Numbers of trials at a rung; `entered` is the sum of the others.

    Attributes:
        epoch: epoch of the rung; that of the last rung is the end of training.
        entered: trials that finished this epoch, the baseline and audit trials included.
        passed: trials that continue or completed.
        stopped: trials that ASHA stopped at this rung.
        failed: trials that failed or diverged at this rung.
        waiting: trials that may still be promoted, where `search.asha` is `promote`.
    """

    epoch: int
    entered: int
    passed: int
    stopped: int
    failed: int
    waiting: int


def rung_survival(trials: Iterable[Trial], space: Space) -> list[RungSurvival]:
    """Counts at each rung, lowest rung first. They come from the trials' results, not from the stopping rule."""
    known = list(trials)
    return [_at_rung(known, epoch, space) for epoch in space.rung_epochs]


def _at_rung(trials: list[Trial], epoch: int, space: Space) -> RungSurvival:
    there = [trial for trial in trials if trial.n_epochs >= epoch]
    last_here = [trial for trial in there if trial.n_epochs == epoch]
    ends = [trial.status for trial in last_here]
    stopped, failed = ends.count("stopped"), ends.count("failed") + ends.count("diverged")
    waiting = sum(waits_at_rung(trial, space) for trial in last_here)
    return RungSurvival(
        epoch=epoch,
        entered=len(there),
        passed=len(there) - stopped - waiting - failed,
        stopped=stopped,
        failed=failed,
        waiting=waiting,
    )
