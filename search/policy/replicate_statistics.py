"""Estimates from replicates: means, confidence intervals and leads. Pure functions.

Replicates are made in blocks. The replicates of a block share their random streams (weights, order of the images,
dropout, augmentation), so that trials are compared within blocks, with the same randomness.

The model is `score = mean + scale × (block + error)` with `scale = Metric.noise_scale(mean)`. For accuracy, balanced
accuracy and macro F1 that is `mean × (1 - mean)`: the standard deviation is larger at 50 % than at 97 %, and about
constant on the scale of logits. For loss it is the mean itself. The noise can therefore be pooled over trials of
different scores. Means and leads are reported as scores of the metric: for loss, with a minus sign.

Source of the variance function: Wedderburn, "Quasi-likelihood functions, generalized linear models, and the
Gauss-Newton method" (Biometrika 61, 1974).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from search.experiment.history import History
from trainable.metric import ACCURACY, Metric

EQUAL = 1e-9  # smaller differences and standard deviations are rounding errors of equal scores


@dataclass(frozen=True, slots=True)
class ReplicateSummary:
    """Estimates for one trial.

    Attributes:
        trial: number of the trial.
        n_runs: number of finished replicates.
        n_diverged: number of diverged ones among them.
        mean: mean score. A diverged replicate counts as 0, or as the highest finite loss of the search and its
            replicates. If trials have different numbers of replicates, the mean is adjusted for the difficulty of
            blocks, as if all trials had been in all blocks.
        half_width: half the width of the 95 % confidence interval of `mean`; None with fewer than two replicates,
            with a diverged one, and if the replicates of each trial are all equal, which gives no estimate of spread.
        is_tied: whether the lead of the trial with the best mean is not significant; True for that trial. A trial
            with a diverged replicate is not tied.
    """

    trial: int
    n_runs: int
    n_diverged: int
    mean: float
    half_width: float | None
    is_tied: bool
    metric: Metric = ACCURACY


@dataclass(frozen=True, slots=True)
class Lead:
    """How far one trial is ahead of another: a difference of scores.

    Attributes:
        mean: difference of the means.
        half_width: half the width of its 95 % confidence interval; None if a trial has fewer than two replicates, or a
            diverged one.
        metric: whose scores are compared.
    """

    mean: float
    half_width: float | None
    metric: Metric = ACCURACY

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > max(self.half_width, EQUAL)


def replicate_results(history: History) -> dict[int, ReplicateSummary]:
    """Estimates for all trials with replicates, by number; ordered by mean, best first, then by number.

    Intervals are Student's t, with the spread within trials pooled on the scale of the model.
    """
    runs = _Runs(history)
    order = sorted(runs.means, key=lambda number: (-runs.means[number], number))
    return {
        number: ReplicateSummary(
            trial=number,
            n_runs=runs.n_runs(number),
            n_diverged=runs.n_diverged.get(number, 0),
            mean=runs.means[number],
            half_width=runs.fit.half_width(number) if runs.have_intervals(number) else None,
            is_tied=number == order[0] or (number not in runs.n_diverged and not runs.lead(order[0], number).is_clear),
            metric=history.metric,
        )
        for number in order
    }


def lead(history: History, first: int, second: int) -> Lead:
    """Lead of trial `first` over trial `second`; 0 without an interval if one has no replicate."""
    return _Runs(history).lead(first, second)


class _Runs:
    """Finished replicates of trials that count, with their means and leads.

    `values` has scores by trial and block, without diverged replicates; `n_diverged` numbers of those by trial.
    """

    def __init__(self, history: History) -> None:
        self._history = history
        self.values: dict[int, dict[int, float]] = {}
        self.n_diverged: dict[int, int] = {}
        for run in history.replicates.values():
            if run.end is None or run.end.status == "failed" or run.last is None or history.trials[run.trial].excluded:
                continue
            if run.end.status == "diverged":
                self.n_diverged[run.trial] = self.n_diverged.get(run.trial, 0) + 1
            else:
                self.values.setdefault(run.trial, {})[run.block] = run.metric.score(run.last)

    @cached_property
    def fit(self) -> "_Fit":
        return _Fit(self.values, self._history.metric)

    @cached_property
    def means(self) -> dict[int, float]:
        worst = _worst(self._history) if self.n_diverged else 0.0
        return dict.fromkeys(self.n_diverged, worst) | {
            number: (self.fit.mean(number) * len(values) + worst * self.n_diverged.get(number, 0)) / self.n_runs(number)
            for number, values in self.values.items()
        }

    def n_runs(self, number: int) -> int:
        return len(self.values.get(number, ())) + self.n_diverged.get(number, 0)

    def have_intervals(self, *numbers: int) -> bool:
        """Whether each trial has at least two replicates, and no diverged one."""
        # The pooled spread would allow an interval from one replicate, but that would not look credible.
        return all(len(self.values.get(number, ())) > 1 and number not in self.n_diverged for number in numbers)

    def lead(self, first: int, second: int) -> Lead:
        if first == second or not {first, second} <= self.means.keys():
            return Lead(0.0, None, self._history.metric)
        ahead = self.means[first] - self.means[second]
        if not self.have_intervals(first, second) or not self.fit.residual_freedom:
            return Lead(ahead, None, self._history.metric)
        half_width = _student(0.975, self.fit.residual_freedom) * self.fit.error(first, second)
        return Lead(ahead, half_width, self._history.metric)


class _Fit:
    """Least squares of `score / scale = trial + block + error`.

    The spreads are standard deviations on that scale: `within_sd` of the replicates of a trial, `residual_sd` of what
    neither trial nor block explains; each has its degrees of freedom, and is infinite without any.
    """

    def __init__(self, values: Mapping[int, Mapping[int, float]], metric: Metric) -> None:
        self._numbers = sorted(values)
        n_trials = len(self._numbers)
        self._n_runs = {number: len(values[number]) for number in self._numbers}
        plain = [float(np.mean(list(values[number].values()))) for number in self._numbers]
        self._scales = {number: metric.noise_scale(mean) for number, mean in zip(self._numbers, plain, strict=True)}
        runs = [(i, block, value) for i, number in enumerate(self._numbers) for block, value in values[number].items()]
        trials = np.array([i for i, _, _ in runs], dtype=np.intp)
        all_blocks, blocks = np.unique([block for _, block, _ in runs], return_inverse=True)
        self._n_blocks = len(all_blocks)
        scaled = np.array([value / self._scales[self._numbers[i]] for i, _, value in runs])
        columns = (trials, n_trials + blocks)
        normal = np.zeros((n_trials + self._n_blocks,) * 2)
        for rows in columns:
            for others in columns:
                np.add.at(normal, (rows, others), 1.0)
        # Covariance of all effects, in units of the residual variance.
        self._covariance = np.linalg.pinv(normal, hermitian=True)
        effects = self._covariance @ sum(np.bincount(column, scaled, len(normal)) for column in columns)
        self._levels = effects[:n_trials] + (effects[n_trials:].mean() if runs else 0.0)
        self.within_freedom = len(runs) - n_trials
        levels = np.array([mean / metric.noise_scale(mean) for mean in plain])
        self.within_sd = _sd(scaled - levels[trials], self.within_freedom)
        self.residual_freedom = len(runs) - (int(np.linalg.matrix_rank(normal, hermitian=True)) if runs else 0)
        self.residual_sd = _sd(scaled - effects[columns[0]] - effects[columns[1]], self.residual_freedom)

    def mean(self, number: int) -> float:
        """Mean score, as if the trial had been in all blocks."""
        return self._scales[number] * float(self._levels[self._numbers.index(number)])

    def half_width(self, number: int) -> float | None:
        if not self.within_freedom or self.within_sd < EQUAL:
            return None
        error = self._scales[number] * self.within_sd / math.sqrt(self._n_runs[number])
        return _student(0.975, self.within_freedom) * error

    def error(self, first: int, second: int) -> float:
        """The standard error of the difference of two means."""
        between = self._scales[first] - self._scales[second]
        weights = np.full(len(self._covariance), between / self._n_blocks)
        weights[: len(self._numbers)] = 0.0
        weights[self._numbers.index(first)] = self._scales[first]
        weights[self._numbers.index(second)] = -self._scales[second]
        of_chance = self.residual_sd**2 * float(weights @ self._covariance @ weights)
        # Block effects do not cancel if the scales differ, and the blocks are a random sample.
        of_blocks = max(0.0, self.within_sd**2 - self.residual_sd**2)
        n_runs = min(self._n_runs[first], self._n_runs[second])
        return math.sqrt(of_chance + between**2 * of_blocks / n_runs)


def _sd(deviations: NDArray[np.float64], freedom: int) -> float:
    return math.sqrt(float(np.square(deviations).sum()) / freedom) if freedom else math.inf


def _worst(history: History) -> float:
    """Score that a diverged replicate counts as: 0, or the lowest of the finite ones where 0 is the best loss."""
    metric = history.metric
    known = (
        [score for one in history.work for score in one.scores.values() if score > metric.worst]
        if metric.is_loss
        else []
    )
    return min(known, default=0.0)


def _student(probability: float, freedom: int) -> float:
    return float(stdtrit(freedom, probability))
