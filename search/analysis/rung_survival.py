"""How many trials entered each of ASHA's rungs, and what became of them there. A pure function."""

from collections.abc import Iterable
from dataclasses import dataclass

from search.experiment.history import Trial
from search.policy.asha import waits_at_rung
from spaces.schema import Space


@dataclass(frozen=True, slots=True)
class RungSurvival:
    """One rung; the counts but `entered` add up to it.

    Attributes:
        epoch: of the rung; the last rung's is the end of training.
        entered: trials that finished this epoch, the baseline and explored ones too.
        passed: trials that trained on, or will, or completed.
        stopped: by ASHA, here.
        failed: ended here for another reason: diverged, or given up.
        waiting: those that may be promoted yet, where ASHA promotes.
    """

    epoch: int
    entered: int
    passed: int
    stopped: int
    failed: int
    waiting: int


def rung_survival(trials: Iterable[Trial], space: Space) -> list[RungSurvival]:
    """What happened at each rung, lowest first; counted from what trials did, whatever the rule was."""
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
