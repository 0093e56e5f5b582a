"""What replicates say of trials: means, intervals and leads. Pure functions.

Replicates come in blocks. The runs of a block share their random streams (weights, order of the images, dropout,
augmentation), so that trials are compared within blocks, where what luck gives one it gives the others too.

The model is `accuracy = mean + scale × (block + chance)` with `scale = mean × (1 - mean)`: chance moves a trial at 50 %
by more points than one at 97 %, and about as far on the scale of logits. What spread there is can so be pooled over
trials that differ much. Means and leads are in accuracy, as everybody reads them.

Source of the variance function: Wedderburn, "Quasi-likelihood functions, generalized linear models, and the
Gauss-Newton method" (Biometrika 61, 1974).
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.experiment.history import History

# From 99.5 % on (and down from 0.5 %), chance is taken to be as there: a validation set has only so many images.
LEAST_SCALE = 0.005
# A smaller standard deviation is what rounding makes of equal accuracies.
EQUAL = 1e-9
# Of the matrix of trials and blocks: 3,000 runs of 100 trials in 900 blocks. A journal from elsewhere may hold more.
MOST_CELLS = 3_000_000


@dataclass(frozen=True, slots=True)
class ReplicateSummary:
    """What replicates say of one trial.

    Attributes:
        trial: its number.
        n_runs: finished.
        n_diverged: of them.
        mean: of their validation accuracies, 0 to 1, a diverged run's being 0. Where trials have different numbers
            of runs, as if all had been in all blocks: a block may be easier than another.
        half_width: of the 95 % confidence interval of `mean`; None for fewer than two runs, where one
            diverged, and where each trial's runs are all equal, which does not make the next run equal.
        is_tied: whether it cannot be told from the trial with the best mean (which is tied with itself). A trial of
            which a run diverged is tied with nobody.
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
        mean: the difference of their means.
        half_width: of its 95 % confidence interval; None where either has fewer than two runs, or one that diverged.
    """

    mean: float
    half_width: float | None

    @property
    def is_clear(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


def replicate_results(history: History) -> dict[int, ReplicateSummary]:
    """What replicates say, for every trial that has any; the best mean first, ties in mean by number.

    Intervals use the spread within trials, pooled over all of them on the scale of the model, by Student's t.
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
    """How far `first` is ahead of `second`, both trials' numbers; 0 without an interval where one has no replicate."""
    runs = _Runs.of(history)
    return _lead(runs, _Model.of(runs.values), first, second)


def run_sd(history: History, accuracy: float) -> float | None:
    """The standard deviation of a replicate's accuracy for a trial whose mean is this; None if unknown."""
    spread = _Model.of(_Runs.of(history).values).within
    return None if spread.freedom == 0 else spread.sd * _scale(accuracy)


def diverged(history: History) -> set[int]:
    """Trials of which a replicate diverged."""
    return set(_Runs.of(history).n_diverged)


def leaders(history: History, numbers: Collection[int], level: float) -> set[int]:
    """Those of the trials that are not clearly behind the best of them, in the blocks that all of them finished.

    Args:
        history: of the search.
        numbers: of the trials, none of which has a replicate that diverged.
        level: probability of error, in (0, 1), when the last is behind the best.
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
        values: accuracies by trial and block, without runs that diverged.
        n_diverged: by trial, for those that have any.
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
        """Whether each of these trials has two runs at least, none of which diverged.

        The spread of other trials would do for an interval from one run, but nobody believes it.
        """
        return all(len(self.values.get(number, ())) > 1 and number not in self.n_diverged for number in numbers)

    def mean(self, number: int, model: "_Model") -> float:
        if number not in self.values:
            return 0.0
        return model.mean(number) * len(self.values[number]) / self.n_runs(number)


@dataclass(frozen=True, slots=True)
class _Spread:
    """A standard deviation on the scale of the model, and its degrees of freedom; infinite where those are 0."""

    sd: float
    freedom: int

    @classmethod
    def of(cls, squares: float, freedom: int) -> "_Spread":
        return cls(math.sqrt(max(squares, 0.0) / freedom) if freedom else math.inf, freedom)


@dataclass(frozen=True, slots=True)
class _Model:
    """`accuracy = mean + scale × (block + chance)`, fitted by least squares of `accuracy / scale`.

    Attributes:
        scales: of each trial.
        n_runs: of each trial.
        levels: of each trial: its mean over all blocks, divided by its scale. In the order of `covariance`.
        covariance: (trials + blocks, trials + blocks), of all effects, in units of the residual's variance.
        within: spread of a trial's runs.
        residual: spread that neither trial nor block explains.
    """

    scales: Mapping[int, float]
    n_runs: Mapping[int, int]
    levels: Mapping[int, float]
    covariance: NDArray[np.float64]
    within: _Spread
    residual: _Spread

    @classmethod
    def of(cls, values: Mapping[int, Mapping[int, float]]) -> "_Model":
        """Of accuracies by trial and block."""
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
            # As if no block were easier than another.
            covariance, residual = np.diag([1 / n for n in n_runs.values()]), within
        else:
            levels, covariance, residual = _without_blocks(scaled, trials, blocks)
        return cls(scales, n_runs, dict(zip(numbers, levels.tolist(), strict=True)), covariance, within, residual)

    def mean(self, number: int) -> float:
        """As if the trial had been in all blocks, 0 to 1."""
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
        # What a block does to both is not the same number of points for both, and other blocks would have done other.
        of_blocks = max(0.0, self.within.sd**2 - self.residual.sd**2) if n_blocks else 0.0
        n_runs = min(self.n_runs[first], self.n_runs[second])
        return math.sqrt(of_chance + between**2 * of_blocks / n_runs)


def _without_blocks(
    scaled: NDArray[np.float64], trials: NDArray[np.intp], blocks: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64], _Spread]:
    """Least squares of trial + block.

    Args:
        scaled: (N,) accuracies, divided by their trial's scale.
        trials, blocks: (N,) which each is of, from 0.

    Returns:
        (trials,) levels as if all had been in all blocks, the covariance of all effects, and what they do not explain.
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
    # Imported late: the leaderboard must answer at once.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
