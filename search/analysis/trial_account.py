"""The account of one trial: what each rung said of it and why, and how it stands now. Pure functions of the history."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.analysis.ranking import Ranked, rank
from search.analysis.rung_statistics import RungVisit, rung_visits
from search.experiment.history import History, Replicate, Trial
from search.policy.asha import is_exempt, waits_at_rung
from spaces.schema import Space


@dataclass(frozen=True, slots=True)
class TrialAccount:
    """What is known of a trial.

    Attributes:
        trial: the trial.
        space: the space of the search.
        row: of the leaderboard.
        n_trials: number of rows of the leaderboard.
        visits: the rungs that it reached, lowest first.
        audit_ranks: by epoch of each of these rungs, the ranks of the completed audit trials that the rung refused.
        replicates: of the trial, in order.
    """

    trial: Trial
    space: Space
    row: Ranked
    n_trials: int
    visits: Sequence[RungVisit]
    audit_ranks: Mapping[int, Sequence[int]]
    replicates: Sequence[Replicate]

    @property
    def waits(self) -> bool:
        """Whether it waits at its last rung, to be promoted."""
        return waits_at_rung(self.trial, self.space)

    @property
    def n_best(self) -> int:
        """Number of the best trials: those that a search trains again, at least 1."""
        return max(1, self.space.confirm.top)

    def n_back(self, epoch: int) -> int:
        """Number of the audit trials that the rung refused and that ended among the best all the same."""
        return sum(place <= self.n_best for place in self.audit_ranks[epoch])

    def as_dict(self) -> dict[str, Any]:
        """The row of the leaderboard, with the rungs and the replicates."""
        rungs = [
            {"epoch": one.epoch, "value": one.metric.value(one.value), "margin": one.margin}
            | {"cutoff": None if one.cutoff is None else one.metric.value(one.cutoff)}
            | {"passes": one.reason is None, "reason": one.reason or ""}
            | {"others": [{"trial": n, "value": one.metric.value(value)} for n, value in one.others.items()]}
            | {
                "refused_audit_ranks": list(self.audit_ranks[one.epoch]),
                "n_refused_audits_back": self.n_back(one.epoch),
            }
            for one in self.visits
        ]
        replicates = [
            {"run": run.number, "block": run.block, "status": run.end.status if run.end else "running"}
            | {"epochs": run.n_epochs, run.metric.column: last_value(run)}
            for run in self.replicates
        ]
        state = {"never_stopped": is_exempt(self.trial), "waits": self.waits, "excluded": self.trial.excluded}
        numbers = {"n_trials": self.n_trials, "max_epochs": self.space.training.max_epochs, "n_best": self.n_best}
        return {**self.row.as_dict(), **state, **numbers, "rungs": rungs, "replicates": replicates}


def last_value(one: Trial | Replicate) -> float | None:
    """The metric after the last epoch; None without an epoch, and where training diverged."""
    return None if one.last_score is None else one.metric.value(one.last_score)


def account(history: History, space: Space, number: int, chance: float | None = None) -> TrialAccount:
    """The account of a trial.

    Args:
        history: of the search, which may still run.
        space: the space of the search.
        number: of the trial, which must be in the history.
        chance: score of guessing that the rungs used (`manifest.Data.chance_of`); None where it is not known.

    Raises:
        InputError: this version cannot read an earlier space of the search.
    """
    ranked, visits = rank(history, chance), rung_visits(history, space, chance)
    audits = [row for row in ranked if row.audit and row.status == "completed" and not row.excluded]

    def refused_at(epoch: int) -> list[int]:
        return [row.rank for row in audits if epoch in visits[row.trial] and visits[row.trial][epoch].reason]

    return TrialAccount(
        trial=history.trials[number],
        space=space,
        row=next(row for row in ranked if row.trial == number),
        n_trials=len(ranked),
        visits=list(visits[number].values()),
        audit_ranks={epoch: refused_at(epoch) for epoch in visits[number]},
        replicates=[run for run in history.replicates.values() if run.trial == number],
    )
