"""The account of one trial: what each rung said of it and why, its replicates and its place. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.analysis.columns import compact, forecast_text, replicate_text
from search.analysis.ranking import Ranked, rank
from search.analysis.rung_statistics import rung_visits
from search.experiment.history import History, Replicate, Trial
from search.policy.asha import is_exempt
from search.policy.rungs import RungVisit
from spaces.counted import counted
from spaces.schema import Space
from trainable.metric import METRICS


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
    """

    trial: Trial
    space: Space
    row: Ranked
    n_trials: int
    visits: Sequence[RungVisit]
    audit_ranks: Mapping[int, Sequence[int]]
    replicates: Sequence[Replicate]

    def as_dict(self) -> dict[str, Any]:
        """The row of the leaderboard, with the rungs and the replicates."""
        rungs = [asdict(visit) | {"refused_audit_ranks": self.audit_ranks[visit.epoch]} for visit in self.visits]
        replicates = [{"run": run.number, "status": run.status, "value": run.last_value} for run in self.replicates]
        return {**self.row.as_dict(), "n_trials": self.n_trials, "rungs": rungs, "replicates": replicates}

    def lines(self, is_live: bool = True) -> Iterator[str]:
        """The account as text: one or two lines for each rung, and four more; `is_live`: whether the search runs."""
        trial, reason = self.trial, self.row.reason
        kind = "baseline" if trial.baseline else "audit"
        exempt = f" ({kind}: no rung stops it)" if is_exempt(trial) else ""
        running = "running" if is_live else "unfinished"
        status = trial.end.status if trial.end else running
        why = f": {reason}" if reason and reason not in [visit.reason for visit in self.visits] else ""
        epochs = f"{trial.n_epochs} of {counted(self.space.training.max_epochs, 'epoch')}"
        yield f"trial {trial.number}{exempt}: {status}, {epochs}{why}"
        source = f" (proposed by: {trial.proposed_by})" if trial.proposed_by else ""
        yield compact({name: getattr(trial.config, name) for name in self.space.searched}) + source
        for visit in self.visits:
            yield _visit_text(visit)
            if ranks := self.audit_ranks[visit.epoch]:
                n_best = max(1, self.space.confirm.top)
                back = f"{sum(rank <= n_best for rank in ranks) or 'none'} came back among the best {n_best}"
                audits = counted(len(ranks), "audit trial")
                yield f"  of {audits} that it refused, {back} (the best is on place {min(ranks)})"
        if not self.visits:
            rungs = ", ".join(map(str, self.space.rung_epochs[:-1]))
            yield f"no result at a rung (epochs {rungs})" if rungs else "no trial is stopped: no rung before the end"
        results = [(run.status, run.metric.text(run.last_score or 0.0)) for run in self.replicates]
        runs = ", ".join(text if status == "completed" else status for status, text in results)
        mean = f" (mean {replicate_text(self.row.replicates)})" if self.row.replicates else ""
        yield f"replicates: {runs or 'none'}{mean}"
        foreseen = f"forecast, {forecast_text(self.row)}" if self.row.forecast else "result in the search"
        by = "replicates" if self.row.replicates else foreseen
        yield f"leaderboard: place {self.row.rank} of {self.n_trials} by its {by}"


def _visit_text(visit: RungVisit) -> str:
    metric = METRICS[visit.metric]
    said, margin = visit.reason or metric.text(metric.value(visit.value)), ""
    if visit.cutoff is not None and visit.margin is not None:
        cutoff = metric.text(metric.value(visit.cutoff))
        said += "" if f"cutoff {cutoff}" in said else f", cutoff {cutoff}"
        margin = f", {metric.size_text(abs(visit.margin))} {metric.unit} {'short' if visit.reason else 'ahead'}"
    if not visit.is_open:
        said += ", which does not count before this rung has the order of the last one"
    verdict = "refused" if visit.reason else "passed"
    return f"rung {visit.epoch}: {verdict}{margin}: {said}; place {visit.place} of {visit.n}"


def account(history: History, space: Space, number: int) -> TrialAccount:
    """The account of a trial.

    Args:
        history: of the search, which may still run.
        space: the space of the search.
        number: of the trial, which must be in the history.

    Raises:
        InputError: this version cannot read an earlier space of the search.
    """
    ranked, visits = rank(history), rung_visits(history, space)
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
    )
