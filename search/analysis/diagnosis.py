"""The quality of a search: findings from its history, a sentence each. Pure functions."""

import math
from collections.abc import Sequence
from typing import Any

from search.analysis.findings import Finding, Verdict
from search.analysis.importance import Importance
from search.analysis.ranking import WHAT_TO_TRY, Ranked, chance_sentence, leader, rank, winner
from search.analysis.space_findings import divergences, edges, importances
from search.analysis.stopping_findings import rank_correlation, savings, would_be_winners
from search.experiment.history import History
from search.policy.replicate_statistics import lead
from spaces.counted import counted
from spaces.schema import Space
from trainable.metric import ACCURACY

MIN_FLAT_TRIALS = 10
# Equal results have forecasts that differ by less than this, depending on the processor's rounding.
ROUNDING = 1e-9


def diagnose(
    history: History,
    space: Space,
    n_validation: int | None = None,
    importance: Importance | None = None,
) -> list[Finding]:
    """All findings about a search, in the order of their verdicts: `change`, `fine`, `unknown`.

    Excluded trials do not count. Where the best trial is at chance, findings that compare accuracies are left out,
    because they would compare guesses.

    Args:
        history: of the search, which may still run.
        space: the space of the search.
        n_validation: number of validation images; None if unknown.
        importance: at the first rung; None computes it.
    """
    ranked = rank(history)
    findings = [divergences(history, space), failures(history), learning(history, ranked)]
    if winner(ranked) or not leader(ranked):
        findings += [
            edges(history, space),
            rank_correlation(history, space),
            would_be_winners(history, space),
            flatness(history, n_validation),
            importances(history, space, importance),
        ]
    findings.append(savings(history, space))
    order: tuple[Verdict, ...] = ("change", "fine", "unknown")
    return sorted(findings, key=lambda finding: order.index(finding.verdict))


def failures(history: History) -> Finding:
    """Number of trials that failed."""
    n_ended = history.n_ended
    n_failed = sum(trial.status == "failed" for trial in history.counting)
    numbers = {"n": n_ended, "n_failed": n_failed}
    if not n_ended:
        return Finding("failures", "unknown", "No trial has ended yet.", "", numbers)
    if not n_failed:
        return Finding("failures", "fine", f"Of {counted(n_ended, 'trial')}, none failed.", "", numbers)
    sentence = f"{n_failed} of {counted(n_ended, 'trial')} ({n_failed / n_ended:.0%}) failed."
    return Finding("failures", "change", sentence, "Remove the cause that search.leaderboard shows for each.", numbers)


def learning(history: History, ranked: Sequence[Ranked]) -> Finding:
    """Number of trials that are no better than guessing.

    Args:
        history: of the search.
        ranked: rows, as `rank` gives them.
    """
    known = [row for row in ranked if not row.excluded and row.score is not None]
    metric, chance = history.metric, history.chance
    numbers: dict[str, Any] = {"n": len(known), "n_at_chance": sum(row.at_chance for row in known)}
    numbers["chance"] = None if chance is None or not known else metric.value(chance)
    if chance is None or not known:
        return Finding(
            "learning",
            "unknown",
            "Whether trials learned anything cannot be told: no result, or no `data.chance` in its manifest.",
            "",
            numbers,
        )
    sentence = chance_sentence(history, ranked) or f"Of {counted(len(known), 'trial')}, none is at chance."
    if leader(ranked) and not winner(ranked):
        return Finding("learning", "change", sentence, WHAT_TO_TRY, numbers)
    return Finding("learning", "fine", sentence, "", numbers)


def flatness(history: History, n_validation: int | None) -> Finding:
    """Gain of the best completed trial in the last third of the epochs.

    With replicates, the means of the two trials are compared, and the gain must exceed the interval of the
    difference, because the result of a single run is partly luck. Without any replicates, the gain must exceed the
    standard error of an accuracy on `n_validation` images; for other metrics, the finding is unknown then. Without
    improving proposals, a search finds no new best trial in its last third with probability 2/3, whether or not it has
    converged.
    """
    spent, n_ended = sum(trial.n_epochs for trial in history.counting), history.n_ended
    early = {result.trial for n_epochs, result in history.completions() if n_epochs <= spent * 2 / 3}
    completed = [row for row in rank(history) if row.status == "completed" and not row.excluded]
    before = next((row for row in completed if row.trial in early), None)
    numbers: dict[str, Any] = {"n": n_ended, "epochs": spent}
    untold = "Whether the search still improves cannot be told"
    if before is None or n_ended < MIN_FLAT_TRIALS:
        sentence = f"{untold} from {counted(n_ended, 'trial')} and {counted(spent, 'epoch')}."
        return Finding("flatness", "unknown", sentence, "", numbers)
    now = completed[0]
    metric, before_score, now_score = history.metric, before.score or 0.0, now.score or 0.0
    gained = now_score - before_score
    noise, noise_is = _noise(history, now, before, n_validation)
    numbers |= {"before": metric.value(before_score), "now": metric.value(now_score)}
    numbers |= {"gained": gained, "noise": noise, "noise_is": noise_is}
    if noise is None:
        sentence = f"{untold}: trials {now.trial} and {before.trial}, the best now and before its last third, have "
        return Finding("flatness", "unknown", f"{sentence}too few replicates.", "", numbers)
    sentence = (
        f"The last third of the {spent} epochs brought the best completed trial from {before.result_text} to "
        f"{now.result_text}"
    )
    against = f" ({noise_is}: {metric.size_text(noise)} {metric.unit})" if noise else ""
    if gained > noise + ROUNDING:
        advice = "More trials may bring more: resume with --add-trials."
        return Finding("flatness", "change", f"{sentence}{against}: it still improves.", advice, numbers)
    advice = "More trials of this space will bring little: widen it, train longer, or change what is fixed."
    return Finding("flatness", "fine", f"{sentence}{against}: it has flattened.", advice, numbers)


def _noise(history: History, now: Ranked, before: Ranked, n_validation: int | None) -> tuple[float | None, str]:
    """The noise that a gain must exceed, and its name; None where there are too few replicates to estimate it."""
    if now is before:
        return 0.0, ""
    if history.replicates:
        both = now.replicates and before.replicates
        half_width = lead(history, now.trial, before.trial).half_width if both else None
        return half_width, "half of the difference's 95 % interval"
    if history.metric is not ACCURACY:
        return None, ""  # its standard error on so many images is not known
    if not n_validation or n_validation < 0:
        return 0.0, ""
    accuracy = now.score or 0.0
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / n_validation), f"standard error of {n_validation:,} images"
