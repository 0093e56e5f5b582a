"""Findings about the space: divergence, narrow ranges, and important hyperparameters. Pure functions."""

from collections.abc import Sequence
from typing import Any

from scipy.stats import mannwhitneyu

from search.analysis.edges import EDGE, Edge, crowded_edges
from search.analysis.findings import Finding, Verdict
from search.analysis.importance import MIN_TRIALS, Importance, importance_at
from search.analysis.ranking import rank
from search.experiment.history import History
from search.policy.space_change import contains
from spaces.counted import counted
from spaces.parameters import Searched
from spaces.schema import Space

N_BEST = 5
MIN_RANKED = 10  # among fewer trials, the best five are most of them
MAX_DIVERGED = 0.1  # share of trials
MIN_LR_TELLS = 0.75  # share of pairs of a diverged and another trial in which the diverged one has the larger lr
TRIALS_PER_PARAMETER = 10


def divergences(history: History, space: Space) -> Finding:
    """Number of trials and replicates whose loss was not finite, and the lr above which most trials diverged."""
    ended = [trial for trial in history.counting if trial.end]
    diverged = [trial for trial in ended if trial.status == "diverged"]
    runs = [run for run in history.replicates.values() if run.end and not history.trials[run.trial].excluded]
    n_runs_diverged = sum(run.end is not None and run.end.status == "diverged" for run in runs)
    numbers: dict[str, Any] = {"n": len(ended), "n_diverged": len(diverged), "n_diverged_replicates": n_runs_diverged}
    if not ended:
        return Finding("divergences", "unknown", "No trial has ended yet.", "", numbers)
    again = f"; of {counted(len(runs), 'replicate')}, {n_runs_diverged} diverged" if n_runs_diverged else ""
    if not diverged:
        return Finding("divergences", "fine", f"Of {counted(len(ended), 'trial')}, none diverged{again}.", "", numbers)
    share = len(diverged) / len(ended)
    numbers["share"] = share
    sentence = f"{len(diverged)} of {counted(len(ended), 'trial')} ({share:.0%}) diverged{again}."
    if share < MAX_DIVERGED or len(diverged) < 2:
        return Finding("divergences", "fine", sentence, "", numbers)
    others = [trial.config.lr for trial in ended if trial.status in ("completed", "stopped")]
    cutoff = _lr_that_tells([trial.config.lr for trial in diverged], others) if "lr" in space.searched else None
    numbers["lr_above_which_most_diverge"] = cutoff
    if cutoff is None:
        searched = [name for name in ("lr", "momentum") if name in space.searched]
        advice = f"Lower the upper end of {' and '.join(searched)}." if searched else "Lower lr or momentum."
        return Finding("divergences", "change", sentence, advice, numbers)
    n_above = sum(trial.config.lr > cutoff for trial in diverged)
    n_others_above = sum(lr > cutoff for lr in others)
    advice = (
        f"Lower the upper end of lr to {cutoff:.2g}: {n_above} of the diverged lie above it, "
        f"and {n_others_above} of the {len(others)} others."
    )
    return Finding("divergences", "change", sentence, advice, numbers)


def edges(history: History, space: Space) -> Finding:
    """Whether many of the best trials, in the leaderboard's order, lie at an end of a range."""
    scored = [row for row in rank(history) if not row.excluded and row.validation_accuracy is not None]
    ranked = [row for row in scored if contains(space, row.config)]
    best = [row.config for row in ranked[:N_BEST]]
    numbers: dict[str, Any] = {"n": len(ranked), "n_best": len(best), "edges": []}
    if len(ranked) < MIN_RANKED:
        sentence = (
            f"Whether a range is too narrow cannot be told from {counted(len(ranked), 'trial')}, {MIN_RANKED} would do."
        )
        return Finding("edges", "unknown", sentence, "", numbers)
    found = crowded_edges(best, space)
    if not found:
        sentence = (
            f"The best {N_BEST} of {counted(len(ranked), 'trial')} crowd at no end of a range that could be widened."
        )
        return Finding("edges", "fine", sentence, "", numbers)
    numbers["edges"] = [_edge_numbers(edge) for edge in found]
    sentence = "; ".join(_edge_text(edge) for edge in found) + "."
    wider = ", ".join(f"`{edge.name}: {_yaml(edge.wider)}`" for edge in found)
    return Finding("edges", "change", sentence, f"Widen: {wider}.", numbers)


def importances(history: History, space: Space) -> Finding:
    """Importance of hyperparameters for the accuracy at the first rung and at the end of training.

    Every trial reaches the first rung. Only trials that were not stopped reach the end, and their values lie in the
    better part of the space.
    """
    first, end = space.rung_epochs[0], space.training.max_epochs
    completed = [trial for trial in history.counting if trial.status == "completed"]
    compared = [
        found
        for epoch, trials in {first: history.counting, end: completed}.items()
        if (found := importance_at(epoch, trials, space))
    ]
    n_parameters = len(space.searched)
    n_first = sum(trial.n_epochs >= first for trial in history.counting)
    numbers = {"n_parameters": n_parameters, "compared": [_importance_numbers(found) for found in compared]}
    if not compared:
        why = f"{counted(n_first, 'trial')}, {MIN_TRIALS} would do" if n_parameters > 1 else "one parameter"
        sentence = f"Which hyperparameters mattered cannot be told from {why}."
        return Finding("importances", "unknown", sentence, "", numbers)
    texts = [_importance_text(found, of_all=found.epoch == first) for found in compared]
    enough = TRIALS_PER_PARAMETER * n_parameters
    caution = f" (fewer than {enough} trials for {n_parameters} parameters can show little)" * (n_first < enough)
    text = "; ".join(texts)
    verdict: Verdict = "fine" if any(found.found for found in compared) else "unknown"
    return Finding("importances", verdict, f"{text[0].upper()}{text[1:]}{caution}.", "", numbers)


def _lr_that_tells(diverged: Sequence[float], others: Sequence[float]) -> float | None:
    """Learning rate that separates diverged trials best from the others; None where none does."""
    if not others:
        return None
    pairs = mannwhitneyu(diverged, others).statistic / (len(diverged) * len(others))
    if pairs < MIN_LR_TELLS:
        return None

    def parts(cutoff: float) -> float:
        return sum(lr > cutoff for lr in diverged) / len(diverged) - sum(lr > cutoff for lr in others) / len(others)

    return max(others, key=parts)


def _edge_text(edge: Edge) -> str:
    end = "upper" if edge.upper else "lower"
    return (
        f"{edge.name}: {edge.n_near} of the best {edge.n_best} trials lie within {EDGE:.0%} of the {end} end "
        f"{edge.end:g} (by chance in {_once_in(edge.chance)} searches)"
    )


def _once_in(chance: float) -> str:
    return f"1 of {float(f'{1 / chance:.1g}'):,.0f}" if chance < 0.5 else "most"


def _edge_numbers(edge: Edge) -> dict[str, Any]:
    return {
        "parameter": edge.name,
        "end": "upper" if edge.upper else "lower",
        "value": edge.end,
        "n_near": edge.n_near,
        "chance": edge.chance,
        "wider": edge.wider.as_yaml(),
    }


def _yaml(parameter: Searched) -> str:
    ((kind, values),) = parameter.as_yaml().items()
    return f"{{{kind}: [{', '.join(f'{value:g}' for value in values)}]}}"


def _importance_text(importance: Importance, of_all: bool) -> str:
    n = importance.n
    which = f"all {n} trials after epoch {importance.epoch}" if of_all else f"the {n} completed trials at the end"
    chance = f"shuffled accuracies give up to {importance.by_chance:.0%}"
    if not importance.found:
        name, share = next(iter(importance.shares.items()))
        return f"nothing stands out in the accuracy of {which}: {name} explains most, {share:.0%}, and {chance}"
    shares = ", ".join(f"{name} {share:.0%}" for name, share in importance.found.items())
    return f"in the accuracy of {which}: {shares} of the variance; the rest is no more than chance ({chance})"


def _importance_numbers(found: Importance) -> dict[str, Any]:
    return {"epoch": found.epoch, "n": found.n, "by_chance": found.by_chance, "shares": dict(found.shares)}
