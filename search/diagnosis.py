"""Whether a search itself was any good: findings from its history, each in a sentence. Pure functions."""

import math
from collections.abc import Iterator
from typing import Any

from search.findings import Finding, Verdict, trials_text
from search.fresh_statistics import run_sd
from search.records import History
from search.space_findings import divergences, edges, importances
from search.stopping_findings import rank_correlation, savings, would_be_winners
from spaces.schema import Space

MIN_FLAT_TRIALS = 10


def diagnose(
    history: History, space: Space, n_validation: int | None = None, chance: float | None = None
) -> list[Finding]:
    """Everything that can be said of a search: first what to change, then what is well, then what cannot be told.

    Trials outside the space as it was changed later do not count.

    Args:
        history: of the search, which may still run.
        space: what is searched.
        n_validation: validation images; None if unknown.
        chance: as the rungs had it (`manifest.Data.chance`).
    """
    findings = [
        divergences(history, space),
        failures(history),
        edges(history, space),
        rank_correlation(history, space),
        would_be_winners(history, space, chance),
        flatness(history, n_validation),
        importances(history, space),
        savings(history, space, chance),
    ]
    order: tuple[Verdict, ...] = ("change", "fine", "unknown")
    return sorted(findings, key=lambda finding: order.index(finding.verdict))


def failures(history: History) -> Finding:
    """How many trials could not be trained."""
    n_ended = history.n_ended
    n_failed = sum(trial.status == "failed" for trial in history.counting)
    numbers = {"n": n_ended, "n_failed": n_failed}
    if not n_ended:
        return Finding("failures", "unknown", "No trial has ended yet.", "", numbers)
    if not n_failed:
        return Finding("failures", "fine", f"Of {trials_text(n_ended)}, none failed.", "", numbers)
    sentence = f"{n_failed} of {trials_text(n_ended)} ({n_failed / n_ended:.0%}) failed."
    return Finding("failures", "change", sentence, "Mend the reason that search.leaderboard gives for each.", numbers)


def flatness(history: History, n_validation: int | None) -> Finding:
    """What the last third of the epochs added to the best completed trial.

    It counts as nothing if it is less than the noise of one run: the spread of one such configuration over fresh runs,
    or else the standard error that so many validation images leave. Even a search that has not converged goes
    a third without a new best two times in three, if its proposals do not improve.
    """
    course = list(_course(history))
    spent = sum(trial.n_epochs for trial in history.counting)
    before = max((best for epochs, best in course if epochs <= spent * 2 / 3), default=None)
    n_ended = history.n_ended
    numbers: dict[str, Any] = {"n": n_ended, "epochs": spent}
    if before is None or n_ended < MIN_FLAT_TRIALS:
        sentence = f"Whether the search still improves cannot be told from {trials_text(n_ended)} and {spent} epochs."
        return Finding("flatness", "unknown", sentence, "", numbers)
    now = course[-1][1]
    noise, noise_is = _noise(now, n_validation, run_sd(history, now))
    gained = now - before
    numbers |= {"before": before, "now": now, "gained": gained, "noise": noise, "noise_is": noise_is}
    sentence = f"The last third of the {spent} epochs brought the best from {before:.2%} to {now:.2%}"
    against = f" ({noise_is}: {100 * noise:.2f} points)" if noise else ""
    if gained > noise:
        advice = "More trials may bring more: go on with --add-trials."
        return Finding("flatness", "change", f"{sentence}{against}: it still improves.", advice, numbers)
    advice = "More trials of this space will bring little: widen it, train longer, or change what is fixed."
    return Finding("flatness", "fine", f"{sentence}{against}: it has flattened.", advice, numbers)


def _course(history: History) -> Iterator[tuple[int, float]]:
    """Epochs spent and the best accuracy at the end of a trial so far, whenever a trial completed."""
    spent, best = 0, -math.inf
    for result in history.results_in_order:
        trial = history.trials[result.trial]
        if trial.set_aside:
            continue
        spent += 1
        if trial.status == "completed" and result.epoch == trial.n_epochs:
            best = max(best, result.validation_accuracy)
            yield spent, best


def _noise(accuracy: float, n_validation: int | None, sd: float | None) -> tuple[float, str | None]:
    if sd is not None:
        return sd, "a configuration's standard deviation over fresh runs"
    if n_validation and n_validation > 0:
        variance = max(0.0, accuracy * (1 - accuracy))
        return math.sqrt(variance / n_validation), f"standard error of {n_validation:,} images"
    return 0.0, None
