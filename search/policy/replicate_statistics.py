"""Estimates from replicates: means, confidence intervals and leads. Pure functions.

Replicates are made in blocks. The replicates of a block share their random streams (weights, order of the images,
dropout, augmentation), so that trials are compared within blocks, with the same randomness.

The model is `accuracy = mean + scale × (block + error)` with `scale = mean × (1 - mean)`: the standard deviation is
larger at 50 % accuracy than at 97 %, and about constant on the scale of logits. It can therefore be pooled over trials
of different accuracy. Means and leads are reported as accuracies.

Source of the variance function: Wedderburn, "Quasi-likelihood functions, generalized linear models, and the
Gauss-Newton method" (Biometrika 61, 1974).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.experiment.history import History

# Lower bound of `scale`, reached at accuracies of 0.5 % and 99.5 %: validation sets are finite.
LEAST_SCALE = 0.005
EQUAL = 1e-9  # smaller standard deviations are rounding errors of equal accuracies
# Limit of the design matrix: 3,000 replicates of 100 trials in 900 blocks. A foreign journal may have more.
MOST_CELLS = 3_000_000


@dataclass(frozen=True, slots=True)
class ReplicateSummary:
    """Estimates for one trial.

    Attributes:
        trial: number of the trial.
        n_runs: number of finished replicates.
        n_diverged: number of diverged ones among them.
        mean: mean validation accuracy, 0 to 1; a diverged replicate counts as 0. If trials have different numbers of
            replicates, the mean is adjusted for the difficulty of blocks, as if all trials had been in all blocks.
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


@dataclass(frozen=True, slots=True)
class Lead:
    """How far one trial is ahead of another, in accuracy (0 to 1).

    Attributes:
        mean: difference of the means.
        half_width: half the width of its 95 % confidence interval; None if a trial has fewer than two replicates, or a
            diverged one.
    """

    mean: float
    half_width: float | None

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def replicate_results(history: History) -> dict[int, ReplicateSummary]:
    """Estimates for all trials with replicates, by number; ordered by mean, best first, then by number.

    Intervals are Student's t, with the spread within trials pooled on the scale of the model.
    """
    runs = _Runs.of(history)
    model = _Model.of(runs.values)
    means = {number: runs.mean(number, model) for number in runs.numbers}
    order = sorted(means, key=lambda number: (-means[number], number))
    return {
        number: ReplicateSummary(
            trial=number,
            n_runs=runs.n_runs(number),
            n_diverged=runs.n_diverged.get(number, 0),
            mean=means[number],
            half_width=model.half_width(number) if runs.have_intervals(number) else None,
            is_tied=number == order[0]
            or (number not in runs.n_diverged and not _lead(runs, model, order[0], number).is_clear),
        )
        for number in order
    }


def lead(history: History, first: int, second: int) -> Lead:
    """Lead of trial `first` over trial `second`; 0 without an interval if one has no replicate."""
    runs = _Runs.of(history)
    return _lead(runs, _Model.of(runs.values), first, second)


def run_sd(history: History, accuracy: float) -> float | None:
    """Standard deviation of the accuracy of a replicate, for a trial with mean `accuracy`; None if unknown."""
    spread = _Model.of(_Runs.of(history).values).within
    return None if spread.freedom == 0 else spread.sd * _scale(accuracy)


def diverged(history: History) -> set[int]:
    """Numbers of the trials with a diverged replicate."""
    return set(_Runs.of(history).n_diverged)


def leaders(history: History, numbers: Collection[int], level: float) -> set[int]:
    """Trials that are not significantly worse than the best, in the blocks that all of them finished.

    Args:
        history: of the search.
        numbers: numbers of the trials; none may have a diverged replicate.
        level: error probability of the test of the worst against the best trial, in (0, 1).
    """
    left = set(numbers)
    values = _Runs.of(history).values
    while len(left) > 1:
        common = set.intersection(*(set(values.get(number, ())) for number in left))
        if len(common) < 2:
            break
        model = _Model.of({number: {block: values[number][block] for block in sorted(common)} for number in left})
        means = {number: model.mean(number) for number in sorted(left)}
        best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
        if means[best] - means[worst] <= _student(1 - level, model.residual.freedom) * model.error(best, worst):
            break
        left.remove(worst)
    return left


def _lead(runs: "_Runs", model: "_Model", first: int, second: int) -> Lead:
    if first == second or not {first, second} <= runs.numbers:
        return Lead(0.0, None)
    ahead = runs.mean(first, model) - runs.mean(second, model)
    if not runs.have_intervals(first, second) or not model.residual.freedom:
        return Lead(ahead, None)
    return Lead(ahead, _student(0.975, model.residual.freedom) * model.error(first, second))


@dataclass(frozen=True, slots=True)
class _Runs:
    """Finished replicates of trials that count.

    Attributes:
        values: accuracies by trial and block, without diverged replicates.
        n_diverged: numbers of diverged replicates by trial, for trials that have any.
    """

    values: Mapping[int, Mapping[int, float]]
    n_diverged: Mapping[int, int]

    @classmethod
    def of(cls, history: History) -> "_Runs":
        values: dict[int, dict[int, float]] = {}
        n_diverged: dict[int, int] = {}
        for run in history.replicates.values():
            if run.end is None or run.end.status == "failed" or run.last is None or history.trials[run.trial].excluded:
                continue
            if run.end.status == "diverged":
                n_diverged[run.trial] = n_diverged.get(run.trial, 0) + 1
            else:
                values.setdefault(run.trial, {})[run.block] = run.last.validation_accuracy
        return cls(values, n_diverged)

    @property
    def numbers(self) -> set[int]:
        return {*self.values, *self.n_diverged}

    def n_runs(self, number: int) -> int:
        return len(self.values.get(number, ())) + self.n_diverged.get(number, 0)

    def have_intervals(self, *numbers: int) -> bool:
        """Whether each trial has at least two replicates, and no diverged one.

        The pooled spread would allow an interval from one replicate, but that would not look credible.
        """
        return all(len(self.values.get(number, ())) > 1 and number not in self.n_diverged for number in numbers)

    def mean(self, number: int, model: "_Model") -> float:
        if number not in self.values:
            return 0.0
        return model.mean(number) * len(self.values[number]) / self.n_runs(number)


@dataclass(frozen=True, slots=True)
class _Spread:
    """A standard deviation on the scale of the model, infinite without degrees of freedom."""

    sd: float
    freedom: int

    @classmethod
    def of(cls, squares: float, freedom: int) -> "_Spread":
        return cls(math.sqrt(max(squares, 0.0) / freedom) if freedom else math.inf, freedom)


@dataclass(frozen=True, slots=True)
class _Model:
    """`accuracy = mean + scale × (block + error)`, fitted by least squares of `accuracy / scale`.

    Attributes:
        scales: `scale` by trial.
        n_runs: number of replicates by trial.
        levels: mean over all blocks divided by `scale`, by trial, in the order of `covariance`.
        covariance: (trials + blocks, trials + blocks) covariance of all effects, in units of the residual variance.
        within: spread of the replicates of a trial.
        residual: spread that is explained neither by trial nor by block.
    """

    scales: Mapping[int, float]
    n_runs: Mapping[int, int]
    levels: Mapping[int, float]
    covariance: NDArray[np.float64]
    within: _Spread
    residual: _Spread

    @classmethod
    def of(cls, values: Mapping[int, Mapping[int, float]]) -> "_Model":
        """Fit the model to accuracies by trial and block."""
        if not values:
            return cls({}, {}, {}, np.zeros((0, 0)), _Spread.of(0.0, 0), _Spread.of(0.0, 0))
        numbers = sorted(values)
        plain = {number: float(np.mean(list(values[number].values()))) for number in numbers}
        scales = {number: _scale(plain[number]) for number in numbers}
        n_runs = {number: len(values[number]) for number in numbers}
        scaled = np.array([value / scales[number] for number in numbers for value in values[number].values()])
        trials = np.repeat(np.arange(len(numbers)), list(n_runs.values()))
        blocks = np.unique([block for number in numbers for block in values[number]], return_inverse=True)[1]
        levels = np.array([plain[number] / scales[number] for number in numbers])
        within = _Spread.of(float(np.square(scaled - levels[trials]).sum()), len(scaled) - len(numbers))
        if len(scaled) * (len(numbers) + blocks.max() + 1) > MOST_CELLS:
            # Without block effects.
            covariance, residual = np.diag([1 / n for n in n_runs.values()]), within
        else:
            levels, covariance, residual = _without_blocks(scaled, trials, blocks)
        return cls(scales, n_runs, dict(zip(numbers, levels.tolist(), strict=True)), covariance, within, residual)

    def mean(self, number: int) -> float:
        """Mean accuracy, as if the trial had been in all blocks, 0 to 1."""
        return self.scales[number] * self.levels[number]

    def half_width(self, number: int) -> float | None:
        if not self.within.freedom or self.within.sd < EQUAL:
            return None
        error = self.scales[number] * self.within.sd / math.sqrt(self.n_runs[number])
        return _student(0.975, self.within.freedom) * error

    def error(self, first: int, second: int) -> float:
        """The standard error of the difference of two means."""
        numbers, weights = list(self.levels), np.zeros(len(self.covariance))
        weights[numbers.index(first)], weights[numbers.index(second)] = self.scales[first], -self.scales[second]
        between = self.scales[first] - self.scales[second]
        n_blocks = len(weights) - len(numbers)
        if n_blocks:
            weights[len(numbers) :] = between / n_blocks
        of_chance = self.residual.sd**2 * float(weights @ self.covariance @ weights)
        # Block effects do not cancel if the scales differ, and the blocks are a random sample.
        of_blocks = max(0.0, self.within.sd**2 - self.residual.sd**2) if n_blocks else 0.0
        n_runs = min(self.n_runs[first], self.n_runs[second])
        return math.sqrt(of_chance + between**2 * of_blocks / n_runs)


def _without_blocks(
    scaled: NDArray[np.float64], trials: NDArray[np.intp], blocks: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], _Spread]:
    """Least squares of trial + block.

    Args:
        scaled: (N,) accuracies, divided by their trial's scale.
        trials, blocks: (N,) index of the trial and of the block of each accuracy, from 0.

    Returns:
        (trials,) levels as if all trials had been in all blocks, the covariance of all effects, and the residual.
    """
    n_trials, runs = trials.max() + 1, np.arange(len(scaled))
    design = np.zeros((len(scaled), n_trials + blocks.max() + 1))
    design[runs, trials] = design[runs, n_trials + blocks] = 1
    covariance = np.linalg.pinv(design.T @ design, hermitian=True)
    effects = covariance @ design.T @ scaled
    rest = float(np.square(scaled - design @ effects).sum())
    residual = _Spread.of(rest, len(scaled) - int(np.linalg.matrix_rank(design)))
    return effects[:n_trials] + effects[n_trials:].mean(), covariance, residual


def _scale(accuracy: float) -> float:
    return max(accuracy * (1 - accuracy), LEAST_SCALE)


def _student(probability: float, freedom: int) -> float:
    # Imported late: the leaderboard starts faster without scipy.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
