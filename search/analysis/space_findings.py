"""Findings about the space: divergence, ranges whose end the best values crowd at, parameters that matter. Pure."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import binom

from search.analysis.findings import Finding
from search.analysis.importance import MIN_TRIALS, Importance, importance_at
from search.analysis.ranking import rank
from search.experiment.history import History
from spaces.counted import counted
from spaces.parameters import LIMITS, Choice, Hyperparameters, LogUniform, Number, RandInt, Searched, Uniform
from spaces.schema import Space

EDGE = 0.05  # share of a range, at either end, that counts as its edge
MAX_CHANCE = 0.05  # an edge with a larger p-value is not reported
WIDENED_BY = 0.25  # share of the range that a wider one has in addition
MOST_FLIPS = 0.5  # p and 1 - p flip the same images apart from a mirror, so that p <= 0.5 is enough
N_BEST = 5
MIN_RANKED = 10  # among fewer trials, the best five are most of them
MAX_DIVERGED = 0.1  # share of trials
MIN_LR_TELLS = 0.5  # share of diverged trials above a learning rate, minus that of the others
TRIALS_PER_PARAMETER = 10

Range = Uniform | LogUniform | RandInt


@dataclass(frozen=True, slots=True)
class Edge:
    """An end of a range at which many of the best values lie.

    Attributes:
        parameter: name of the parameter.
        end: `lower` or `upper`.
        value: of the end.
        n_near: number of the best values that lie at this end.
        chance: p-value: probability of such an edge at any end of any range, if no parameter mattered.
        wider: a range that is wider at this end, as in YAML.
    """

    parameter: str
    end: str
    value: Number
    n_near: int
    chance: float
    wider: dict[str, list[Any]]


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
        value = parameter.high if upper else parameter.low
        n_near = sum(_is_near(parameter, value, getattr(config, name)) for config in best)
        chance = min(1.0, len(ends) * float(binom.sf(n_near - 1, len(best), _edge_share(parameter))))
        if n_near and chance <= MAX_CHANCE:
            wider = widened(name, parameter, upper).as_yaml()
            found.append(Edge(name, "upper" if upper else "lower", value, n_near, chance, wider))
    return sorted(found, key=lambda edge: edge.chance)


def widened(name: str, parameter: Range, upper: bool) -> Searched:
    """The range extended by `WIDENED_BY` at one end, in its own scale and within the limits of the parameter."""
    low, high, limits = parameter.low, parameter.high, LIMITS[name]
    if isinstance(parameter, RandInt):
        more = max(1, round(WIDENED_BY * (high - low)))
        whole = min(high + more, limits.high) if upper else max(low - more, limits.low)
        return RandInt(parameter.low, int(whole)) if upper else RandInt(int(whole), parameter.high)
    if isinstance(parameter, LogUniform):
        factor = (high / low) ** WIDENED_BY
        end = high * factor if upper else low / factor
    else:
        end = high + WIDENED_BY * (high - low) if upper else low - WIDENED_BY * (high - low)
    end = min(max(float(f"{end:.2g}"), limits.low), limits.high)
    if not limits.allow(end):  # a limit that is no valid value itself
        end = ((high if upper else low) + end) / 2
    return type(parameter)(low, end) if upper else type(parameter)(end, high)


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
    share = numbers["share"] = len(diverged) / len(ended)
    sentence = f"{len(diverged)} of {counted(len(ended), 'trial')} ({share:.0%}) diverged{again}."
    if share < MAX_DIVERGED or len(diverged) < 2:
        return Finding("divergences", "fine", sentence, "", numbers)
    bad = [trial.config.lr for trial in diverged]
    others = [trial.config.lr for trial in ended if trial.status in ("completed", "stopped")]
    cutoff = _lr_that_tells(bad, others) if "lr" in space.searched else None
    numbers["lr_above_which_most_diverge"] = cutoff
    if cutoff is None:
        return Finding("divergences", "change", sentence, "Lower lr or momentum, or the upper ends of both.", numbers)
    advice = (
        f"Lower the upper end of lr to {cutoff:.2g}: {sum(lr > cutoff for lr in bad)} of the diverged lie above it, "
        f"and {sum(lr > cutoff for lr in others)} of the {len(others)} others."
    )
    return Finding("divergences", "change", sentence, advice, numbers)


def edges(history: History, space: Space) -> Finding:
    """Whether many of the best trials, in the leaderboard's order, lie at an end of a range."""
    scored = [row for row in rank(history) if not row.excluded and row.search_score is not None]
    ranked = [row for row in scored if space.contains(row.config)]
    best = [row.config for row in ranked[:N_BEST]]
    n = counted(len(ranked), "trial")
    if len(ranked) < MIN_RANKED:
        numbers: dict[str, Any] = {"n": len(ranked), "n_best": len(best), "edges": []}
        sentence = f"Whether a range is too narrow cannot be told from {n}, {MIN_RANKED} would do."
        return Finding("edges", "unknown", sentence, "", numbers)
    found = crowded_edges(best, space)
    numbers = {"n": len(ranked), "n_best": len(best), "edges": [asdict(edge) for edge in found]}
    if not found:
        sentence = f"The best {N_BEST} of {n} crowd at no end of a range that could be widened."
        return Finding("edges", "fine", sentence, "", numbers)
    sentence = f"{'; '.join(_edge_text(edge) for edge in found)}."
    wider = ", ".join(f"`{edge.parameter}: {_yaml(edge.wider)}`" for edge in found)
    return Finding("edges", "change", sentence, f"Widen: {wider}.", numbers)


def importance_epoch(space: Space) -> int:
    """Epoch whose scores the importance of hyperparameters is estimated from.

    It is the first rung, which every trial reaches. With `asha: adaptive` it is the last rung, because early ones may
    say nothing of the end.
    """
    rungs = space.rung_epochs
    return rungs[-2] if space.search.asha == "adaptive" and len(rungs) > 1 else rungs[0]


def importances(history: History, space: Space, known: Importance | None = None) -> Finding:
    """Importance of hyperparameters at `importance_epoch`; `known` if it was computed before."""
    epoch, n_parameters = importance_epoch(space), len(space.searched)
    found = known or importance_at(epoch, history.counting, space)
    numbers = {"n_parameters": n_parameters, "compared": [asdict(found)] if found else []}
    if found is None:
        n = sum(trial.n_epochs >= epoch for trial in history.counting)
        why = f"{counted(n, 'trial')}, {MIN_TRIALS} would do" if n_parameters > 1 else "one parameter"
        sentence = f"Which hyperparameters mattered cannot be told from {why}."
        return Finding("importances", "unknown", sentence, "", numbers)
    of = f"{'logarithm of the ' if history.metric.is_loss else ''}{history.metric.title}"
    mattering = ", ".join(f"{name} {share:.0%}" for name, share in found.found.items())
    enough = TRIALS_PER_PARAMETER * n_parameters
    caution = f" Fewer than {enough} trials for {n_parameters} parameters can show little." if found.n < enough else ""
    sentence = (
        f"Of the variance of the {of} of {found.n} trials after epoch {epoch}, "
        f"{mattering or 'no parameter'} explains more than chance (at most {found.by_chance:.0%}).{caution}"
    )
    return Finding("importances", "fine" if mattering else "unknown", sentence, "", numbers)


def _is_natural(name: str, parameter: Range, upper: bool, max_epochs: int) -> bool:
    """Whether values beyond this end are impossible or equivalent to values inside the range."""
    if not upper:
        return parameter.low <= LIMITS[name].low
    highest = {"flip_p": MOST_FLIPS, "step_size": float(max_epochs)}.get(name, LIMITS[name].high)
    return parameter.high >= highest


def _is_near(parameter: Range, end: Number, value: Number) -> bool:
    """Whether a value lies within `EDGE` of the range from an end, in the scale of the range."""
    if isinstance(parameter, LogUniform):
        return abs(math.log(end / value)) <= EDGE * math.log(parameter.high / parameter.low)
    return abs(end - value) <= EDGE * (parameter.high - parameter.low)


def _edge_share(parameter: Range) -> float:
    """Probability that a draw from the range is near one of its ends."""
    if isinstance(parameter, RandInt):
        width = parameter.high - parameter.low
        return (int(EDGE * width) + 1) / (width + 1)
    return EDGE


def _lr_that_tells(diverged: Sequence[float], others: Sequence[float]) -> float | None:
    """Learning rate that separates diverged trials best from the others; None where none does."""

    def parts(cutoff: float) -> float:
        return sum(lr > cutoff for lr in diverged) / len(diverged) - sum(lr > cutoff for lr in others) / len(others)

    best = max(others, key=parts, default=None)
    return best if best is not None and parts(best) >= MIN_LR_TELLS else None


def _edge_text(edge: Edge) -> str:
    return (
        f"{edge.parameter}: {edge.n_near} of the best {N_BEST} trials lie within {EDGE:.0%} of the {edge.end} end "
        f"{edge.value:g} (p = {edge.chance:.1g})"
    )


def _yaml(wider: dict[str, list[Any]]) -> str:
    ((kind, values),) = wider.items()
    return f"{{{kind}: [{', '.join(f'{value:g}' for value in values)}]}}"
