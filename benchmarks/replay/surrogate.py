"""Learning curves of configurations that are in no table: a regression over a table, with noise.

Three parts are fitted to the table: the expected accuracy of a configuration after each epoch; the probability that it
still always predicts the same class (such runs share a few exact values, which are ties at a rung); and the noise of
seeds and epochs.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from benchmarks.replay.tables import N_CLASSES, Array, Table, in_unit_cube, random_configurations

JUDGED_EPOCHS = (1, 3, 9, 27)
N_FOLDS = 10
N_TREES = 100
N_RANDOM = 20_000
# Predicted probabilities of being at chance below BLUR count as 0, those above 1 - BLUR as 1.
BLUR = 0.1
# The noise of epoch e is pooled over epochs e / POOLED to e × POOLED.
POOLED = 1.5
# Smallest distance of accuracies from 0 and 1 before the logit is taken.
SMALLEST_ODDS = 0.005

PROCESS, FOREST = "gaussian process of logits", "random forest"
MODELS = (PROCESS, FOREST)

Predict = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Accuracy of a regression on held-out rows of the table, for one epoch.

    Attributes:
        epoch: number of the epoch, from 1.
        r2: explained share of the variance.
        mae: mean absolute error of the accuracy, 0 to 1.
    """

    epoch: int
    r2: float
    mae: float


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise of a run's accuracies about the expected accuracies of its configuration.

    Attributes:
        scale: (E,) standard deviation after each epoch, divided by sqrt(a (1 - a)) of the accuracy a.
        correlation: correlation between epochs of one run.
    """

    scale: Array
    correlation: float


class Answer(NamedTuple):
    """Expected results of M configurations.

    Attributes:
        learned: (M, E) accuracies of runs above chance.
        share: (M, E) probabilities of being at chance.
        final: (M,) noise-free last accuracies. Whether a run learns at all depends on the configuration only:
            if it depended on the seed, a configuration that learns in one of three runs could look like a winner.
    """

    learned: Array
    share: Array
    final: Array


class Surrogate:
    """Answers for any configuration of a table's space; `best` and `baseline` are noise-free last accuracies.

    Args:
        table: table that the surrogate is fitted to.
        model: name of the regression, one of `MODELS`.
        correlation: correlation of the noise of two epochs of a run, 0 to 1; None for that of the table.
    """

    def __init__(self, table: Table, model: str = PROCESS, correlation: float | None = None) -> None:
        self.table = table
        self.noise = noise_of(table)
        if correlation is not None:
            self.noise = replace(self.noise, correlation=correlation)
        self._predict = _fitted(model, table.unit, _targets(table))
        # Only noise can exceed the best accuracies of the table.
        self._ceiling = table.curves.max(axis=0)
        at_chance = table.is_at_chance(table.curves)
        self._at_chance = [np.sort(table.curves[at_chance[:, epoch], epoch]) for epoch in range(table.epochs)]
        drawn = random_configurations(table.space, N_RANDOM, seed=0)
        sample = np.array([in_unit_cube(table.space, values) for values in drawn])
        parts = (*np.array_split(sample, 20), table.unit)
        self.best = max(float(self.answer(part).final.max()) for part in parts)
        baseline = in_unit_cube(table.space, table.space.searched_values(table.space.baseline))
        self.baseline = float(self.answer(baseline[None]).final[0])

    def answer(self, unit: Array) -> Answer:
        """Expected results of (M, D) configurations."""
        expected, stuck = np.split(self._predict(unit), 2, axis=1)
        share = np.clip((stuck - BLUR) / (1 - 2 * BLUR), 0.0, 1.0)
        # The expected accuracy is a mixture of both kinds of run.
        learned = (expected - share / N_CLASSES) / np.maximum(1 - share, BLUR)
        learned = np.clip(learned, np.minimum(expected, 1 / N_CLASSES), self._ceiling)
        return Answer(learned, share, np.where(share[:, -1] > 0.5, 1 / N_CLASSES, learned[:, -1]))

    def run(self, unit: Array, seed: int) -> tuple[Array, float]:
        """Simulate the training of a configuration.

        Args:
            unit: (D,) the configuration.
            seed: seed of the search. The same configuration and seed give the same run.

        Returns:
            (E,) observed accuracies with noise, and the noise-free last accuracy.
        """
        (learned,), (share,), (final,) = self.answer(unit[None])
        generator = np.random.default_rng([seed, *np.ascontiguousarray(unit).view(np.uint32).tolist()])
        correlation = self.noise.correlation
        normal = np.sqrt(correlation) * generator.standard_normal()
        normal = normal + np.sqrt(1 - correlation) * generator.standard_normal(len(learned))
        seen = learned + self.noise.scale * np.sqrt(np.clip(learned * (1 - learned), 0, None)) * normal
        seen = np.clip(np.round(seen * self.table.n_images) / self.table.n_images, 0.0, 1.0)
        # One draw for all epochs, with which the last epoch agrees with `final`.
        low, high = (0.0, share[-1]) if share[-1] > 0.5 else (share[-1], 1.0)
        is_stuck = generator.uniform(low, high) < share
        place = generator.random()
        for epoch in np.flatnonzero(is_stuck):
            values = self._at_chance[epoch]
            seen[epoch] = values[int(place * len(values))] if len(values) else self.table.chance
        return np.asarray(seen), float(final)


def held_out_scores(table: Table, model: str) -> list[HeldOut]:
    """Scores of a regression on held-out rows, by cross-validation."""
    order = np.random.default_rng(0).permutation(len(table.unit))
    predicted = np.empty_like(table.curves)
    for fold in np.array_split(order, N_FOLDS):
        kept = np.setdiff1d(order, fold)
        predict = _fitted(model, table.unit[kept], _targets(table)[kept])
        predicted[fold] = predict(table.unit[fold])[:, : table.epochs]
    return [_score(epoch, table, predicted) for epoch in JUDGED_EPOCHS if epoch <= table.epochs]


def _score(epoch: int, table: Table, predicted: Array) -> HeldOut:
    true, said = table.curves[:, epoch - 1], predicted[:, epoch - 1]
    r2 = 1 - ((true - said) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    return HeldOut(epoch, float(r2), float(np.abs(true - said).mean()))


def noise_of(table: Table) -> Noise:
    """Estimate noise from repeated seeds if the table has them, otherwise from the raggedness of curves.

    Raggedness cannot show an effect of the seed on all epochs of a run.
    """
    if table.repeats:
        residuals = [(runs - runs.mean(0)) * np.sqrt(len(runs) / (len(runs) - 1)) for runs in table.repeats]
        spread = [np.sqrt(np.clip(runs.mean(0) * (1 - runs.mean(0)), 1e-6, None)) for runs in table.repeats]
        relative = np.concatenate([found / scale for found, scale in zip(residuals, spread, strict=True)])
        scale = _pooled((relative**2).mean(0))
        return Noise(scale, _correlation(relative / scale))
    curves = table.curves[~table.is_at_chance(table.curves).any(axis=1)]
    bends = (curves[:, :-2] - 2 * curves[:, 1:-1] + curves[:, 2:]) ** 2 / 6
    relative = bends / np.clip(curves[:, 1:-1] * (1 - curves[:, 1:-1]), 1e-6, None)
    # The median is robust to epochs in which a curve bends or collapses; that of a squared normal draw is 0.455.
    middle = np.median(relative, axis=0) / 0.455
    return Noise(_pooled(np.concatenate([middle[:1], middle, middle[-1:]])), 0.0)


def _correlation(standardised: Array) -> float:
    products = standardised.T @ standardised / len(standardised)
    n = len(products)
    return float(np.clip((products.sum() - np.trace(products)) / (n * (n - 1)), 0.0, 0.99))


def _pooled(variances: Array) -> Array:
    epochs = np.arange(1, len(variances) + 1)
    near = (epochs[None] <= epochs[:, None] * POOLED) & (epochs[None] >= epochs[:, None] / POOLED)
    return np.asarray(np.sqrt((near * variances).sum(1) / near.sum(1)))


def _targets(table: Table) -> Array:
    """(N, 2 E): accuracies, and whether they are at chance."""
    return np.hstack([table.curves, table.is_at_chance(table.curves).astype(float)])


def _fitted(model: str, unit: Array, targets: Array) -> Predict:
    """A regression that maps (M, D) configurations to (M, 2 E) values between 0 and 1."""
    if model == FOREST:
        forest = RandomForestRegressor(N_TREES, min_samples_leaf=2, random_state=0).fit(unit, targets)
        return lambda configurations: np.clip(forest.predict(configurations), 0.0, 1.0)
    # A process of the accuracies themselves predicts more than 100 % on a wide plateau.
    accuracies, at_chance = np.split(targets, 2, axis=1)
    kept = np.clip(accuracies, SMALLEST_ODDS, 1 - SMALLEST_ODDS)
    lengths = np.full(unit.shape[1], 0.5)
    kernel = ConstantKernel(1.0) * Matern(lengths, (0.05, 20.0), nu=2.5) + WhiteKernel(0.05, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)
    with warnings.catch_warnings():
        # A parameter without influence gets the upper bound of the lengths, about which sklearn warns.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process.fit(unit, np.hstack([np.log(kept / (1 - kept)), at_chance]))

    def predict(configurations: Array) -> Array:
        logits, stuck = np.split(process.predict(configurations), 2, axis=1)
        return np.asarray(np.clip(np.hstack([1 / (1 + np.exp(-logits)), stuck]), 0.0, 1.0))

    return predict
