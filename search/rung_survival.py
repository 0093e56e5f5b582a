"""How many trials entered each of ASHA's rungs, and what became of them there. A pure function."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.records import Trial


@dataclass(frozen=True, slots=True)
class RungSurvival:
    """One rung; the counts but `entered` add up to it.

    Attributes:
        epoch: of the rung; the last rung's is the end of training.
        entered: trials that finished this epoch.
        passed: trials that trained on, or completed.
        stopped: by ASHA, here.
        failed: ended here for another reason: diverged, or given up.
        waiting: not ended, and not further than this.
    """

    epoch: int
    entered: int
    passed: int
    stopped: int
    failed: int
    waiting: int


def rung_survival(trials: Iterable[Trial], rung_epochs: Sequence[int]) -> list[RungSurvival]:
    """What happened at each rung, lowest first; counted from what trials did, whatever the rule was."""
    known = list(trials)
    return [_at_rung(known, epoch) for epoch in rung_epochs]


def _at_rung(trials: list[Trial], epoch: int) -> RungSurvival:
    there = [trial for trial in trials if trial.n_epochs >= epoch]
    last_here = [trial.status for trial in there if trial.n_epochs == epoch]
    stopped, waiting = last_here.count("stopped"), last_here.count("running")
    failed = last_here.count("failed") + last_here.count("diverged")
    return RungSurvival(
        epoch=epoch,
        entered=len(there),
        passed=len(there) - stopped - waiting - failed,
        stopped=stopped,
        failed=failed,
        waiting=waiting,
    )
