"""Findings about stopping: rank correlation of rungs with the end, losses, and savings. Pure functions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from scipy.stats import binomtest

from search.analysis.findings import Finding
from search.analysis.ranking import rank
from search.analysis.rung_statistics import MIN_TRIALS, Correlation, rung_correlations, rung_visits
from search.experiment.history import History, Trial
from search.policy.budget import epochs_trained
from spaces.counted import counted
from spaces.schema import Space


def rank_correlation(history: History, space: Space) -> Finding:
    """Rank correlation between each rung and the end, for trials that were trained to the end.

    Audit trials (`search.audit_fraction`) are a random sample of all trials, so that their correlation is unbiased.
    Trials that passed every rung have similar accuracies there, so that their correlation tends to be lower than
    that of all trials; the baseline counts with them. Trials that diverged are in neither group.
    """
    if len(space.rung_epochs) == 1:
        return Finding("rank_correlation", "fine", "No rung lies before the end: no trial is stopped.", "", {})
    completed = _completed(history, space)
    groups = [[trial for trial in completed if trial.audit == audit] for audit in (True, False)]
    audits, survivors = (rung_correlations(trials, space.rung_epochs) for trials in groups)
    n_audit, n_survivors = map(len, groups)
    numbers = {
        "n_audit": n_audit,
        "audit": [asdict(found) for found in audits],
        "n_survivors": n_survivors,
        "survivors": [asdict(found) for found in survivors],
    }
    if audits:
        sentence = f"{_correlations_text(audits)}, among {counted(n_audit, 'audit trial')} (unbiased)."
        return Finding("rank_correlation", "fine", sentence, "", numbers)
    if survivors:
        sentence = (
            f"{_correlations_text(survivors)}, among the {counted(n_survivors, 'trial')} that completed (biased: "
            "stopping leaves trials that are alike, which lowers it)."
        )
    else:
        sentence = (
            f"How well a rung predicts the end cannot be told from {counted(n_audit, 'audit trial')} and {n_survivors} "
            f"others that completed; {MIN_TRIALS} of either would do."
        )
    advice = (
        f"To measure it without bias, set search.audit_fraction so that {MIN_TRIALS} audit trials complete; "
        "search.run --dry-run prints what they cost."
    )
    return Finding("rank_correlation", "unknown", sentence, advice, numbers)


def would_be_winners(history: History, space: Space) -> Finding:
    """Number of stopped trials that would have ended above the winner, estimated from audit trials.

    The share of refused audit trials that rank above every trial that no rung refused, times the number of stopped
    trials, with Clopper and Pearson's interval: audit trials are a random sample. By rank, because replicates decide
    where trials have them, not the best single run.
    """
    rungs = space.rung_epochs
    if len(rungs) == 1:
        return Finding("would_be_winners", "fine", "No trial is stopped, so that none is lost.", "", {})
    visits, completed = rung_visits(history, space), _completed(history, space)
    refused = {
        trial.number for trial in completed if trial.audit and any(at.reason for at in visits[trial.number].values())
    }
    ranks = {row.trial: row.rank for row in rank(history)}
    best = min((ranks[trial.number] for trial in completed if trial.number not in refused), default=0)
    audits = [ranks[number] for number in refused]
    n_stopped = sum(trial.status == "stopped" for trial in history.counting)
    n, n_winners = len(audits), sum(place < best for place in audits)
    numbers: dict[str, Any] = {"n_stopped": n_stopped, "n_audit_refused": n, "n_audit_refused_winners": n_winners}
    if not n:
        sentence = "How many would-be winners were stopped cannot be told: no refused audit trial has completed."
        return Finding("would_be_winners", "unknown", sentence, "", numbers)
    interval = binomtest(n_winners, n).proportion_ci()
    shares = {"": n_winners / n, "_low": float(interval.low), "_high": float(interval.high)}
    numbers |= {f"direct_n_winners{end}": n_stopped * share for end, share in shares.items()}
    sentence = (
        f"Of {counted(n, 'audit trial')} that a rung refused, {n_winners or 'none'} ended above the rest: of "
        f"{counted(n_stopped, 'stopped trial')}, {n_stopped * interval.low:.1f} to {n_stopped * interval.high:.1f} "
        "(95 % interval) would have been winners."
    )
    if not n_winners:
        return Finding("would_be_winners", "fine" if n >= MIN_TRIALS else "unknown", sentence, "", numbers)
    highest = max(
        epoch for number in refused if ranks[number] < best for epoch, at in visits[number].items() if at.reason
    )
    advice = f"Raise search.grace_epochs to {rungs[rungs.index(highest) + 1]}."
    return Finding("would_be_winners", "change", sentence, advice, numbers)


def saved_epochs(history: History, space: Space) -> int:
    """Epochs that stopped trials would have trained until the end."""
    max_epochs = space.training.max_epochs
    return sum(max(0, max_epochs - trial.n_epochs) for trial in history.counting if trial.status == "stopped")


def savings(history: History, space: Space) -> Finding:
    """The finding of `saved_epochs`."""
    trained, saved = epochs_trained(history), saved_epochs(history, space)
    numbers: dict[str, Any] = {"trained": trained, "saved": saved}
    if not trained:
        return Finding("savings", "unknown", "No epoch has been trained yet.", "", numbers)
    share = numbers["share"] = saved / (trained + saved)
    sentence = f"Stopping saved {counted(saved, 'epoch')} of {trained + saved:,} ({share:.0%})."
    return Finding("savings", "fine", sentence, "", numbers)


def _completed(history: History, space: Space) -> list[Trial]:
    """Trials that were trained to the end. Epochs are checked too, because the space file may have been edited."""
    last = space.training.max_epochs
    return [trial for trial in history.counting if trial.status == "completed" and trial.n_epochs >= last]


def _correlations_text(correlations: Sequence[Correlation]) -> str:
    texts = [f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f}) at epoch {one.epoch}" for one in correlations]
    return f"Rank correlation with the end: {', '.join(texts)}"
