"""Findings about stopping: rank correlation of rungs with the end, losses, and savings. Pure functions."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binomtest

from search.analysis.cost import expected_epochs, expected_search
from search.analysis.findings import Finding
from search.analysis.ranking import rank
from search.analysis.rung_statistics import (
    MIN_TRIALS,
    Correlation,
    Losses,
    expected_losses,
    first_refusals,
    rung_correlations,
)
from search.experiment.audits import n_audits
from search.experiment.history import History, Trial
from spaces.counted import counted
from spaces.schema import Space

MAX_LOSS_CHANCE = 0.25  # acceptable probability that the best trial is stopped


def rank_correlation(history: History, space: Space) -> Finding:
    """Rank correlation between each rung and the end, for trials that were trained to the end.

    Audit trials (`search.audit_fraction`) are a random sample of all trials, so that their correlation is unbiased.
    Trials that passed every rung have similar accuracies there, so that their correlation tends to be lower than
    that of all trials; the baseline counts with them. Trials that diverged are in neither group.
    """
    if len(space.rung_epochs) == 1:
        return Finding("rank_correlation", "fine", "No rung lies before the end: no trial is stopped.", "", {})
    audits, others = _correlations(history, space, audit=True), _correlations(history, space, audit=False)
    completed = _completed(history, space)
    n_random = sum(trial.audit for trial in completed)
    n_others = len(completed) - n_random
    numbers = {
        "n_audit": n_random,
        "audit": [_correlation_numbers(found) for found in audits],
        "n_survivors": n_others,
        "survivors": [_correlation_numbers(found) for found in others],
    }
    measure = "" if audits else _audit_advice(history, space)
    if not audits and not others:
        sentence = (
            f"How well a rung tells the end cannot be told from {n_random} audit and {counted(n_others, 'trial')} more "
            f"that went all the way; {MIN_TRIALS} of either would do."
        )
        return Finding("rank_correlation", "unknown", sentence, measure, numbers)
    texts = []
    if audits:
        texts.append(
            f"{_correlations_text(audits)} among {counted(n_random, 'trial')} that chance sent there (unbiased)"
        )
    if others:
        among = f"among the {n_others} others that got there"
        texts.append(f"{_correlations_text(others)} {among} (biased: stopping leaves trials alike, which lowers it)")
    sentence = f"Rank correlation with the end: {'; '.join(texts)}."
    return Finding("rank_correlation", "fine" if audits else "unknown", sentence, measure, numbers)


def would_be_winners(history: History, space: Space, chance: float | None = None) -> Finding:
    """Number of stopped trials that would have ended above the winner, by two estimates.

    The first is `expected_losses`: mean losses of simulated searches with this search's number of trials and rank
    correlations; its interval comes from the lower and the upper ends of the correlations' intervals. From few audit
    trials its errors are larger upwards than downwards. With too few audit trials, the correlations of the survivors
    are used; these tend to be too low, and the estimate too high.

    The second is direct: the share of refused audit trials that rank above every trial that no rung refused, times
    the number of stopped trials, with Clopper and Pearson's interval. It is wide, but has no model, because audit
    trials are a random sample.
    """
    rungs = space.rung_epochs
    if len(rungs) == 1:
        return Finding("would_be_winners", "fine", "No trial is stopped, so that none is lost.", "", {})
    audits = _correlations(history, space, audit=True)
    used = audits or _correlations(history, space, audit=False)
    numbers: dict[str, Any] = {"from": "audit" if audits else "survivors", **_direct(history, space, chance)}
    if len(used) < len(rungs) - 1:
        n = counted(len(_completed(history, space)), "trial")
        sentence = f"How many would-be winners were stopped cannot be told from {n} that went all the way."
        return Finding("would_be_winners", "unknown", sentence, "", numbers)
    estimate, most, least = (
        _losses(history, space, used, end) for end in (lambda c: c.value, lambda c: c.low, lambda c: c.high)
    )
    numbers |= {
        "n_trials": _n_at_first_rung(history, space),
        "n_winners": estimate.n_winners,
        "n_winners_low": least.n_winners,
        "n_winners_high": most.n_winners,
        "chance": estimate.chance,
        "chance_low": least.chance,
        "chance_high": most.chance,
    }
    too_high = "" if audits else "; rather too many, for the correlation is that of survivors"
    sentence = (
        f"Stopping costs a search like this one {estimate.n_winners:.1f} would-be winners "
        f"({least.n_winners:.1f} to {most.n_winners:.1f}), and with a chance of {estimate.chance:.0%} "
        f"({least.chance:.0%} to {most.chance:.0%}) the best of all{too_high}{_direct_text(numbers)}."
    )
    if estimate.chance <= MAX_LOSS_CHANCE:
        return Finding("would_be_winners", "fine", sentence, "", numbers)
    if not audits:
        return Finding("would_be_winners", "unknown", sentence, "", numbers)
    later = _losses(history, space, used, lambda c: c.value, 1) if len(rungs) > 2 else Losses(0.0, 0.0)
    numbers["chance_with_next_grace"] = later.chance
    advice = (
        f"Raise search.grace_epochs to {rungs[1]}: the chance is {later.chance:.0%} then, for about "
        f"{_dearer(history, space)} epochs more."
    )
    return Finding("would_be_winners", "change", sentence, advice, numbers)


@dataclass(frozen=True, slots=True)
class SavedEpochs:
    """Epochs that stopping saved.

    Attributes:
        trained: epochs of all trials.
        saved: epochs that stopped trials would have trained until the end.
        on_audits: epochs of audit trials after a rung refused them.
    """

    trained: int
    saved: int
    on_audits: int

    @property
    def without_stopping(self) -> int:
        return self.trained + self.saved


def saved_epochs(history: History, space: Space, chance: float | None = None) -> SavedEpochs:
    """Epochs that stopping saved. `chance` is the accuracy of guessing, as the rungs had it."""
    trials, max_epochs = history.counting, space.training.max_epochs
    refused = first_refusals(history, space.rung_epochs, space.search.reduction_factor, chance)
    return SavedEpochs(
        trained=sum(trial.n_epochs for trial in trials),
        saved=sum(max(0, max_epochs - trial.n_epochs) for trial in trials if trial.status == "stopped"),
        on_audits=sum(max(0, t.n_epochs - refused[t.number]) for t in trials if t.audit and t.number in refused),
    )


def savings(history: History, space: Space, chance: float | None = None) -> Finding:
    """The finding of `saved_epochs`."""
    epochs = saved_epochs(history, space, chance)
    numbers: dict[str, Any] = {"trained": epochs.trained, "saved": epochs.saved, "spent_on_audits": epochs.on_audits}
    if not epochs.trained:
        return Finding("savings", "unknown", "No epoch has been trained yet.", "", numbers)
    share = numbers["share"] = epochs.saved / epochs.without_stopping
    audits = f"; {epochs.on_audits:,} of the {epochs.trained:,} trained went into audits" if epochs.on_audits else ""
    sentence = f"Stopping saved {counted(epochs.saved, 'epoch')} of {epochs.without_stopping:,} ({share:.0%}){audits}."
    return Finding("savings", "fine", sentence, "", numbers)


def _completed(history: History, space: Space) -> list[Trial]:
    """Trials that were trained to the end. Epochs are checked too, because the space file may have been edited."""
    last = space.training.max_epochs
    return [trial for trial in history.counting if trial.status == "completed" and trial.n_epochs >= last]


def _correlations(history: History, space: Space, audit: bool) -> list[Correlation]:
    trials = [trial for trial in _completed(history, space) if trial.audit == audit]
    return rung_correlations(trials, space.rung_epochs)


def _n_at_first_rung(history: History, space: Space) -> int:
    return sum(trial.n_epochs >= space.rung_epochs[0] for trial in history.counting)


def _losses(
    history: History,
    space: Space,
    correlations: Sequence[Correlation],
    end: Callable[[Correlation], float],
    first_rung: int = 0,
) -> Losses:
    """Expected losses of a search like this one.

    Args:
        history, space: of the search.
        correlations: for each rung but the last.
        end: picks the value of a correlation, or an end of its interval.
        first_rung: index of the rung at which stopping starts.
    """
    values = [end(found) for found in correlations[first_rung:]]
    search, rungs = space.search, space.rung_epochs[first_rung:]
    n_trials = _n_at_first_rung(history, space)
    return expected_losses(n_trials, rungs, search.reduction_factor, values, search.audit_fraction)


def _direct(history: History, space: Space, chance: float | None) -> dict[str, Any]:
    """The direct estimate of `would_be_winners`: refused audit trials, and those of them that would have won."""
    refused = first_refusals(history, space.rung_epochs, space.search.reduction_factor, chance)
    completed = _completed(history, space)
    let_through = [trial for trial in completed if trial.number not in refused or trial.baseline]
    # By rank, because replicates decide where trials have them, not the best single run.
    ranks = {row.trial: row.rank for row in rank(history)}
    best = min((ranks[trial.number] for trial in let_through), default=0)
    audits = [ranks[trial.number] for trial in completed if trial.audit and trial.number in refused]
    n_winners = sum(place < best for place in audits)
    numbers: dict[str, Any] = {
        "n_stopped": sum(trial.status == "stopped" for trial in history.counting),
        "n_audit_refused": len(audits),
        "n_audit_refused_winners": n_winners,
    }
    if audits:
        interval = binomtest(n_winners, len(audits)).proportion_ci()
        shares = {"": n_winners / len(audits), "_low": interval.low, "_high": interval.high}
        numbers |= {f"direct_n_winners{end}": numbers["n_stopped"] * float(share) for end, share in shares.items()}
    return numbers


def _direct_text(numbers: Mapping[str, Any]) -> str:
    n, n_winners = numbers["n_audit_refused"], numbers["n_audit_refused_winners"]
    if not n:
        return ""
    return f"; seen directly, {n_winners or 'none'} of {n} audit trials that a rung refused ended above the rest"


def _n_trials(history: History, space: Space) -> int:
    """Expected number of trials of the search; the present number where only a time budget limits it."""
    expected = expected_search(space)
    return expected.trials if expected else max(1, len(history.counting))


def _dearer(history: History, space: Space) -> str:
    """Additional epochs of a search that starts with this search's second rung."""
    rungs, trials = space.rung_epochs, _n_trials(history, space)
    now, then = (
        expected_epochs(trials, later, space.search.reduction_factor, n_audits(space, trials))
        for later in (rungs, rungs[1:])
    )
    return f"{then - now:.0f}"


def _audit_advice(history: History, space: Space) -> str:
    """The audit fraction that gives enough audit trials, and its cost in epochs; empty where it costs nothing."""
    trials = _n_trials(history, space)
    enough = math.ceil(10 * MIN_TRIALS / max(trials - 1, 1)) / 10
    share = min(1.0, max(enough, 0.1))
    now, then = (
        expected_epochs(trials, space.rung_epochs, space.search.reduction_factor, n)
        for n in (n_audits(space, trials), round(share * (trials - 1)))
    )
    if then <= now:
        return ""
    return (
        f"To measure it without bias: search.audit_fraction: {share:g}, about {then - now:.0f} epochs more in such a "
        "search."
    )


def _correlations_text(correlations: Sequence[Correlation]) -> str:
    return ", ".join(
        f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f}) at epoch {found.epoch}" for found in correlations
    )


def _correlation_numbers(found: Correlation) -> dict[str, Any]:
    return {"epoch": found.epoch, "value": found.value, "low": found.low, "high": found.high, "n": found.n}
