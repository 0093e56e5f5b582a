"""Findings about the space: parameters whose best values crowd at an end, and parameters that hardly matter. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import binom, mannwhitneyu

from search.analysis.findings import Finding, Verdict
from search.analysis.importance import MIN_TRIALS, Importance, importance_at
from search.analysis.ranking import rank
from search.experiment.history import History
from search.policy.space_change import contains
from spaces.counted import counted
from spaces.parameters import LIMITS, Choice, Hyperparameters, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Space

EDGE = 0.05  # share of a range, at either end, that counts as its edge
MAX_CHANCE = 0.05  # an edge with a larger p-value is not reported
WIDENED_BY = 0.25  # share of the range that a wider one has in addition
MOST_FLIPS = 0.5  # p and 1 - p flip the same images apart from a mirror, so that p <= 0.5 is enough


@dataclass(frozen=True, slots=True)
class Edge:
    """An end of a range at which many of the best values lie.

    Attributes:
        name: name of the parameter.
        upper: whether it is the upper end.
        end: value of the end.
        n_near: number of the best values that lie at this end.
        n_best: number of the best values.
        chance: p-value: probability of such an edge at any end of any range, if no parameter mattered.
        wider: a range that is wider at this end.
    """

    name: str
    upper: bool
    end: Number
    n_near: int
    n_best: int
    chance: float
    wider: Searched


def crowded_edges(best: Sequence[Hyperparameters], space: Space) -> list[Edge]:
    """Ends of ranges at which more of the best configurations lie than by chance, smallest p-value first.

    The p-value is the binomial one of independent draws from the range, times the number of tested ends
    (Bonferroni). TPE's draws are not independent: it proposes more values near the first good ones.

    Args:
        best: the best configurations.
        space: the searched space. Choices have no ends, and ends at the natural limit of a parameter are not tested.
    """
    ends = [
        (name, parameter, upper)
        for name, parameter in space.searched.items()
        if not isinstance(parameter, Choice)
        for upper in (False, True)
        if not _is_natural(name, parameter, upper, space.training.max_epochs)
    ]
    found = []
    for name, parameter, upper in ends:
        n_near = sum(_is_near(parameter, getattr(config, name), upper) for config in best)
        chance = min(1.0, len(ends) * float(binom.sf(n_near - 1, len(best), _share(parameter))))
        if n_near and chance <= MAX_CHANCE:
            end = parameter.high if upper else parameter.low
            found.append(Edge(name, upper, end, n_near, len(best), chance, widened(name, parameter, upper)))
    return sorted(found, key=lambda edge: edge.chance)


def widened(name: str, parameter: Uniform | LogUniform | RandInt, upper: bool) -> Searched:
    """The range extended by `WIDENED_BY` at one end, in its own scale and within the limits of the parameter."""
    low, high = parameter.low, parameter.high
    if isinstance(parameter, RandInt):
        whole = max(1, round(WIDENED_BY * (high - low)))
        if upper:
            return RandInt(parameter.low, int(min(high + whole, LIMITS[name].high)))
        return RandInt(int(max(low - whole, LIMITS[name].low)), parameter.high)
    if isinstance(parameter, LogUniform):
        factor = (high / low) ** WIDENED_BY
        end = high * factor if upper else low / factor
    else:
        more = WIDENED_BY * (high - low)
        end = high + more if upper else low - more
    end = _within_limits(name, float(f"{end:.2g}"), high if upper else low)
    return type(parameter)(low, end) if upper else type(parameter)(end, high)


def _within_limits(name: str, end: float, before: float) -> float:
    limits = LIMITS[name]
    if limits.allow(end):
        return end
    limit, included = (limits.high, limits.includes_high) if end >= limits.high else (limits.low, limits.includes_low)
    return limit if included else (before + limit) / 2


def _is_natural(name: str, parameter: Uniform | LogUniform | RandInt, upper: bool, max_epochs: int) -> bool:
    """Whether values beyond this end are impossible or equivalent to values inside the range."""
    if not upper:
        return parameter.low <= LIMITS[name].low
    highest = {"flip_p": MOST_FLIPS, "step_size": float(max_epochs)}.get(name, LIMITS[name].high)
    return parameter.high >= highest


def _n_edge_values(parameter: RandInt) -> int:
    return max(1, int(EDGE * (parameter.high - parameter.low + 1)))


def _share(parameter: Uniform | LogUniform | RandInt) -> float:
    """Share of the range that is one of its edges."""
    if isinstance(parameter, RandInt):
        return _n_edge_values(parameter) / (parameter.high - parameter.low + 1)
    return EDGE


def _is_near(parameter: Uniform | LogUniform | RandInt, value: Number, upper: bool) -> bool:
    low, high = float(parameter.low), float(parameter.high)
    if isinstance(parameter, RandInt):
        distance = high - value if upper else value - low
        return distance < _n_edge_values(parameter)
    if isinstance(parameter, LogUniform):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (high - value if upper else value - low) <= EDGE * (high - low)


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
