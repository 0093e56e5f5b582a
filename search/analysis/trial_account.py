"""The account of one trial: what each rung said of it and why, its replicates and its place. Pure functions."""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.analysis.columns import compact, replicate_text
from search.analysis.ranking import Ranked, rank
from search.analysis.rung_statistics import RungVisit, rung_visits
from search.experiment.history import History, Replicate, Trial
from search.policy.asha import is_exempt, waits_at_rung
from spaces.counted import counted
from spaces.schema import Space

MOST_OTHERS = 12  # values of other trials on a line
MOST_PLACES = 5  # places of audit trials on a line


@dataclass(frozen=True, slots=True)
class TrialAccount:
    """What is known of a trial.

    Attributes:
        trial: the trial.
        space: the space of the search.
        row: of the leaderboard, which has `n_trials` rows.
        visits: the rungs that it reached, lowest first.
        audit_ranks: by epoch of each of these rungs, the ranks of the completed audit trials that the rung refused.
        replicates: of the trial, in order.
        is_live: whether the search runs now.
    """

    trial: Trial
    space: Space
    row: Ranked
    n_trials: int
    visits: Sequence[RungVisit]
    audit_ranks: Mapping[int, Sequence[int]]
    replicates: Sequence[Replicate]
    is_live: bool

    def as_dict(self) -> dict[str, Any]:
        """The row of the leaderboard, with the rungs and the replicates."""
        rungs = [
            {"epoch": one.epoch, "value": one.metric.value(one.value), "margin": one.margin}
            | {"cutoff": None if one.cutoff is None else one.metric.value(one.cutoff)}
            | {"passes": one.reason is None, "reason": one.reason or ""}
            | {"others": [{"trial": n, "value": one.metric.value(value)} for n, value in one.others.items()]}
            | {"refused_audit_ranks": self.audit_ranks[one.epoch], "n_refused_audits_back": self._n_back(one)}
            for one in self.visits
        ]
        replicates = [
            {"run": run.number, "block": run.block, "status": run.end.status if run.end else "running"}
            | {"epochs": run.n_epochs, run.metric.column: last_value(run)}
            for run in self.replicates
        ]
        more = {"never_stopped": is_exempt(self.trial), "waits": waits_at_rung(self.trial, self.space)}
        more |= {"excluded": self.trial.excluded}
        return {**self.row.as_dict(), "n_trials": self.n_trials, **more, "rungs": rungs, "replicates": replicates}

    def lines(self) -> Iterator[str]:
        """The account as text: two or three lines for each rung, and about five more."""
        trial, rungs = self.trial, self.space.rung_epochs
        exempt = " (baseline)" if trial.baseline else " (audit)" if trial.audit else ""
        said = trial.end.reason if trial.end else ""
        reason = f": {said}" if said and said not in [visit.reason for visit in self.visits] else ""
        epochs = f"{trial.n_epochs} of {counted(self.space.training.max_epochs, 'epoch')}"
        yield f"trial {trial.number}{exempt}: {self._status(trial)}, {epochs}{reason}"
        source = f" (proposed by: {trial.proposed_by})" if trial.proposed_by else ""
        yield compact({name: getattr(trial.config, name) for name in self.space.searched}) + source
        if trial.excluded:
            yield "It lies outside the space as it was changed later: it no longer counts at rungs, nor in the ranking."
        if trial.baseline:
            yield "No rung stops the baseline, because the winner is compared with it."
        elif trial.audit:
            yield "No rung stops an audit trial: it shows how stopped trials would have continued."
        yield ""
        for visit in self.visits:
            yield from self._at(visit)
        if trial.last and trial.last.diverged:
            yield f"It diverged in epoch {trial.last.epoch}, and counts as the worst at the next rung."
        if len(rungs) == 1:
            yield "No trial is stopped: there is no rung before the end."
        elif not self.visits:
            yield f"It has no result at a rung; the first rung is epoch {rungs[0]}."
        elif not any(self.audit_ranks.values()):
            yield "What these rungs lose is not known: no audit trial that they refused has completed."
        yield self._replicate_line()
        by = "replicates" if self.row.replicates else "result in the search"
        tied = ", not distinguishable from the first" if self.row.tied and self.row.rank > 1 else ""
        chance = ", at chance: no better than guessing" if self.row.at_chance else ""
        yield f"leaderboard: place {self.row.rank} of {self.n_trials} by its {by}{tied}{chance}"

    def _at(self, visit: RungVisit) -> Iterator[str]:
        others, metric, margin, said = visit.others, visit.metric, "", visit.reason or visit.metric.text(visit.value)
        if visit.cutoff is not None and visit.margin is not None:
            size, cutoff = metric.size_text(abs(visit.margin)), metric.text(visit.cutoff)
            margin = f", {size} {metric.unit} {'short' if visit.reason else 'ahead'}"
            said += "" if f"cutoff {cutoff}" in said else f", cutoff {cutoff}"
        place = f"place {1 + sum(value > visit.value for value in others.values())} of {len(others) + 1}"
        yield f"rung {visit.epoch}: {self._verb(visit)}{margin}: {said}; {place}"
        nearest = heapq.nsmallest(MOST_OTHERS, others, key=lambda number: abs(others[number] - (visit.cutoff or 0.0)))
        some = f", the {MOST_OTHERS} nearest to the cutoff" if len(others) > MOST_OTHERS else ""
        values = ", ".join(f"{number}: {metric.text(value)}" for number, value in others.items() if number in nearest)
        yield f"  known of other trials then{some}: {values}" if values else "  no other trial was known there then"
        if ranks := self.audit_ranks[visit.epoch]:
            places = ", ".join(map(str, ranks[:MOST_PLACES])) + (", …" if len(ranks) > MOST_PLACES else "")
            back = f"{self._n_back(visit) or 'none'} came back among the best {self._n_best}"
            audits = counted(len(ranks), "audit trial")
            yield f"  of {audits} that it refused, {back} (places {places} of {self.n_trials})"

    def _verb(self, visit: RungVisit) -> str:
        """What happened at a rung, or would have happened to a trial that no rung stops."""
        promotes = self.space.search.asha == "promote"
        if is_exempt(self.trial):
            return f"would {'not ' if visit.reason else ''}have {'been promoted' if promotes else 'passed'}"
        if not promotes:
            return "stopped" if visit.reason else "passed"
        if visit.epoch <= self.trial.promoted_at:
            return "promoted"
        return "left behind" if self.trial.end else "waits"

    def _replicate_line(self) -> str:
        states = [(run, self._status(run)) for run in self.replicates]
        texts = [run.metric.text(run.last_score or 0.0) if state == "completed" else state for run, state in states]
        summary = self.row.replicates
        mean = f"mean {replicate_text(summary)}" if summary else "the ranking does not use them yet"
        return f"replicates: {', '.join(texts)} ({mean})" if texts else "replicates: none"

    def _status(self, one: Trial | Replicate) -> str:
        if one.end:
            return one.end.status
        if isinstance(one, Trial) and waits_at_rung(one, self.space):
            return "waiting to be promoted"
        return "running" if self.is_live else "unfinished (no search runs now)"

    @property
    def _n_best(self) -> int:
        """Number of the best trials: those that a search trains again, at least 1."""
        return max(1, self.space.confirm.top)

    def _n_back(self, visit: RungVisit) -> int:
        """Number of the audit trials that the rung refused and that ended among the best all the same."""
        return sum(rank <= self._n_best for rank in self.audit_ranks[visit.epoch])


def last_value(one: Trial | Replicate) -> float | None:
    """The metric after the last epoch; None without an epoch, and where training diverged."""
    return None if one.last_score is None else one.metric.value(one.last_score)


def account(
    history: History, space: Space, number: int, chance: float | None = None, is_live: bool = False
) -> TrialAccount:
    """The account of a trial.

    Args:
        history: of the search, which may still run.
        space: the space of the search.
        number: of the trial, which must be in the history.
        chance: score of guessing that the rungs used (`manifest.Data.chance_of`); None where it is not known.
        is_live: whether the search runs now.

    Raises:
        InputError: this version cannot read an earlier space of the search.
    """
    ranked, visits = rank(history, chance), rung_visits(history, space, chance)
    audits = [
        (row.rank, visits[row.trial]) for row in ranked if row.audit and row.status == "completed" and not row.excluded
    ]
    return TrialAccount(
        trial=history.trials[number],
        space=space,
        row=next(row for row in ranked if row.trial == number),
        n_trials=len(ranked),
        visits=list(visits[number].values()),
        audit_ranks={
            epoch: [rank for rank, seen in audits if epoch in seen and seen[epoch].reason] for epoch in visits[number]
        },
        replicates=[run for run in history.replicates.values() if run.trial == number],
        is_live=is_live,
    )
