"""Learning curves of configurations that are in no table: a regression over a table, with noise.

Three parts are fitted to the table: the expected accuracy of a configuration after each epoch; the probability that it
still always predicts the same class (such runs share a few exact values, which are ties at a rung); and the noise of
seeds and epochs.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.neighbors import KNeighborsRegressor

from benchmarks.replay.tables import N_CLASSES, Array, Table, in_unit_cube, random_configurations

JUDGED_EPOCHS = (1, 3, 9, 27, 81)
N_FOLDS = 10
N_TREES = 100
N_RANDOM = 20_000
# Predicted probabilities of being at chance below BLUR count as 0, those above 1 - BLUR as 1.
BLUR = 0.1
# The noise of epoch e is pooled over epochs e / POOLED to e × POOLED.
POOLED = 1.5

MODEL_NAMES = ("nearest neighbours", "random forest", "gaussian process of logits")
# Smallest distance of accuracies from 0 and 1 before the logit is taken.
SMALLEST_ODDS = 0.005

Predict = Callable[[Array], Array]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Accuracy of a regression on held-out rows of the table, for one epoch.

    Attributes:
        model: name of the regression.
        epoch: number of the epoch, from 1.
        r2: explained share of the variance.
        mae: mean absolute error of the accuracy, 0 to 1.
        spearman: rank correlation.
    """

    model: str
    epoch: int
    r2: float
    mae: float
    spearman: float


@dataclass(frozen=True, eq=False)
class Noise:
    """Noise of a run's accuracies about the expected accuracies of its configuration.

    Attributes:
        scale: (E,) standard deviation after each epoch, divided by sqrt(a (1 - a)) of the accuracy a.
        correlation: correlation between epochs of one run.
        from_seeds: whether it was estimated from repeated seeds. Otherwise it was estimated from the raggedness of
            curves, which cannot show an effect of the seed on all epochs of a run.
    """

    scale: Array
    correlation: float
    from_seeds: bool


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Answers for any configuration of a table's space.

    Attributes:
        table: table that the surrogate was fitted to.
        model: name of the regression.
        predict: maps (M, D) configurations to (M, 2 E): accuracies, and probabilities of being at chance.
        noise: noise of observed accuracies.
        ceiling: (E,) the best accuracies of the table, which only noise can exceed.
        at_chance: for each epoch, the accuracies of the table's runs at chance, ascending.
        best: highest noise-free last accuracy in the space.
        baseline: noise-free last accuracy of the hand-picked configuration.
    """

    table: Table
    model: str
    predict: Predict
    noise: Noise
    ceiling: Array
    at_chance: tuple[Array, ...]
    best: float
    baseline: float

    def run(self, unit: Array, seed: int) -> tuple[Array, float]:
        """Simulate the training of a configuration.

        Args:
            unit: (D,) the configuration.
            seed: seed of the search. The same configuration and seed give the same run.

        Returns:
            (E,) observed accuracies with noise, and the noise-free last accuracy.
        """
        answer = self.answer(unit[None])
        learned, share, final = answer.learned[0], answer.share[0], float(answer.final[0])
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
            values = self.at_chance[epoch]
            seen[epoch] = values[int(place * len(values))] if len(values) else self.table.chance
        return np.asarray(seen), final

    def answer(self, unit: Array) -> "Answer":
        """Expected results of (M, D) configurations."""
        return answer_of(self.predict(unit), self.ceiling)


@dataclass(frozen=True, eq=False)
class Answer:
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


def answer_of(predicted: Array, ceiling: Array) -> Answer:
    """Split (M, 2 E) predictions into accuracies of learning runs and probabilities of being at chance."""
    expected, stuck = np.split(predicted, 2, axis=1)
    share = np.clip((stuck - BLUR) / (1 - 2 * BLUR), 0.0, 1.0)
    # The expected accuracy is a mixture of both kinds of run.
    learned = (expected - share / N_CLASSES) / np.maximum(1 - share, BLUR)
    learned = np.clip(learned, np.minimum(expected, 1 / N_CLASSES), ceiling)
    final = np.where(share[:, -1] > 0.5, 1 / N_CLASSES, learned[:, -1])
    return Answer(learned, share, final)


def fit(table: Table, model: str) -> Surrogate:
    """Fit the regression `model`, one of `MODEL_NAMES`, to the whole table."""
    predict = partial(_clipped, _MODELS[model](table.unit, _targets(table)))
    at_chance = table.is_at_chance(table.curves)
    values = tuple(np.sort(table.curves[at_chance[:, epoch], epoch]) for epoch in range(table.epochs))
    drawn = random_configurations(table.space, N_RANDOM, seed=0)
    sample = np.array([in_unit_cube(table.space, values) for values in drawn])
    ceiling = table.curves.max(axis=0)
    parts = (*np.array_split(sample, 20), table.unit)
    best = max(float(answer_of(predict(part), ceiling).final.max()) for part in parts)
    baseline = in_unit_cube(table.space, table.space.baseline_suggestion())
    return Surrogate(
        table=table,
        model=model,
        predict=predict,
        noise=noise_of(table),
        ceiling=ceiling,
        at_chance=values,
        best=best,
        baseline=float(answer_of(predict(baseline[None]), ceiling).final[0]),
    )


def best_model(held_out: list[HeldOut]) -> str:
    """The regression with the lowest mean absolute error over the judged epochs."""
    models = list(dict.fromkeys(row.model for row in held_out))
    return min(models, key=lambda name: float(np.mean([row.mae for row in held_out if row.model == name])))


def held_out_scores(table: Table, models: Sequence[str] = MODEL_NAMES) -> list[HeldOut]:
    """Scores of each regression on held-out rows, by cross-validation."""
    order = np.random.default_rng(0).permutation(len(table.unit))
    folds = np.array_split(order, N_FOLDS)
    scores = []
    for model in models:
        predicted = np.empty_like(table.curves)
        for fold in folds:
            kept = np.setdiff1d(order, fold)
            regression = partial(_clipped, _MODELS[model](table.unit[kept], _targets(table)[kept]))
            predicted[fold] = regression(table.unit[fold])[:, : table.epochs]
        scores += [_score(model, epoch, table, predicted) for epoch in JUDGED_EPOCHS if epoch <= table.epochs]
    return scores


def noise_of(table: Table) -> Noise:
    """Estimate noise from repeated seeds if the table has them, otherwise from the raggedness of curves."""
    if table.repeats:
        residuals = [(runs - runs.mean(0)) * np.sqrt(len(runs) / (len(runs) - 1)) for runs in table.repeats]
        spread = [np.sqrt(np.clip(runs.mean(0) * (1 - runs.mean(0)), 1e-6, None)) for runs in table.repeats]
        relative = np.concatenate([found / scale for found, scale in zip(residuals, spread, strict=True)])
        scale = _pooled((relative**2).mean(0))
        return Noise(scale, _correlation(relative / scale), from_seeds=True)
    curves = table.curves[~table.is_at_chance(table.curves).any(axis=1)]
    bends = (curves[:, :-2] - 2 * curves[:, 1:-1] + curves[:, 2:]) ** 2 / 6
    relative = bends / np.clip(curves[:, 1:-1] * (1 - curves[:, 1:-1]), 1e-6, None)
    # The median is robust to epochs in which a curve bends or collapses; that of a squared normal draw is 0.455.
    middle = np.median(relative, axis=0) / 0.455
    return Noise(_pooled(np.concatenate([middle[:1], middle, middle[-1:]])), 0.0, from_seeds=False)


@dataclass(frozen=True, slots=True)
class Ties:
    """Shares of runs at chance and at the most frequent value after an epoch, in the table and the surrogate."""

    epoch: int
    table_at_chance: float
    surrogate_at_chance: float
    table_tied: float
    surrogate_tied: float


def ties(surrogate: Surrogate, n: int = 1000) -> list[Ties]:
    """Compare the ties of `n` simulated runs with those of the table."""
    table = surrogate.table
    drawn = random_configurations(table.space, n, seed=1)
    seen = np.array([surrogate.run(in_unit_cube(table.space, values), 0)[0] for values in drawn])
    return [
        Ties(
            epoch,
            *(float(table.is_at_chance(curves[:, epoch - 1]).mean()) for curves in (table.curves, seen)),
            *(_most_frequent(curves[:, epoch - 1]) for curves in (table.curves, seen)),
        )
        for epoch in JUDGED_EPOCHS
        if epoch <= table.epochs
    ]


def _most_frequent(values: Array) -> float:
    return float(np.unique(values, return_counts=True)[1].max() / len(values))


def _targets(table: Table) -> Array:
    return np.hstack([table.curves, table.is_at_chance(table.curves).astype(float)])


def _clipped(predict: Predict, unit: Array) -> Array:
    return np.clip(predict(unit), 0.0, 1.0)


def _score(model: str, epoch: int, table: Table, predicted: Array) -> HeldOut:
    true, said = table.curves[:, epoch - 1], predicted[:, epoch - 1]
    r2 = 1 - ((true - said) ** 2).sum() / ((true - true.mean()) ** 2).sum()
    return HeldOut(model, epoch, float(r2), float(np.abs(true - said).mean()), float(spearmanr(true, said).statistic))


def _correlation(standardised: Array) -> float:
    products = standardised.T @ standardised / len(standardised)
    n = len(products)
    return float(np.clip((products.sum() - np.trace(products)) / (n * (n - 1)), 0.0, 0.99))


def _pooled(variances: Array) -> Array:
    epochs = np.arange(1, len(variances) + 1)
    near = (epochs[None] <= epochs[:, None] * POOLED) & (epochs[None] >= epochs[:, None] / POOLED)
    return np.asarray(np.sqrt((near * variances).sum(1) / near.sum(1)))


def _nearest_neighbours(unit: Array, targets: Array) -> Predict:
    return KNeighborsRegressor(n_neighbors=5, weights="distance").fit(unit, targets).predict  # type: ignore[no-any-return]


def _random_forest(unit: Array, targets: Array) -> Predict:
    forest = RandomForestRegressor(N_TREES, min_samples_leaf=2, random_state=0).fit(unit, targets)
    return partial(_mean_of_trees, [tree.tree_ for tree in forest.estimators_])


def _mean_of_trees(trees: list[object], unit: Array) -> Array:
    # `RandomForestRegressor.predict` takes ten times as long for one row.
    rows = np.ascontiguousarray(unit, dtype=np.float32)
    total = trees[0].predict(rows)  # type: ignore[attr-defined]
    for tree in trees[1:]:
        total = total + tree.predict(rows)  # type: ignore[attr-defined]
    return np.asarray(total.reshape(len(rows), -1) / len(trees))


def _gaussian_process_of_logits(unit: Array, targets: Array) -> Predict:
    # A process of the accuracies themselves predicts more than 100 % on a wide plateau.
    accuracies, at_chance = np.split(targets, 2, axis=1)
    kept = np.clip(accuracies, SMALLEST_ODDS, 1 - SMALLEST_ODDS)
    logits = np.hstack([np.log(kept / (1 - kept)), at_chance])
    lengths = np.full(unit.shape[1], 0.5)
    kernel = ConstantKernel(1.0) * Matern(lengths, (0.05, 20.0), nu=2.5) + WhiteKernel(0.05, (1e-4, 1.0))
    with warnings.catch_warnings():
        # A parameter without influence gets the upper bound of the lengths, about which sklearn warns.
        warnings.simplefilter("ignore", ConvergenceWarning)
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(unit, logits)
    shape = process.kernel_.k1
    return partial(_process_mean, shape, process.X_train_, process.alpha_, process._y_train_mean, process._y_train_std)


def _process_mean(
    kernel: Callable[..., Array], known: Array, alpha: Array, mean: Array, std: Array, unit: Array
) -> Array:
    logits, at_chance = np.split(np.asarray(kernel(unit, known) @ alpha * std + mean), 2, axis=1)
    return np.hstack([1 / (1 + np.exp(-logits)), at_chance])


_MODELS: dict[str, Callable[[Array, Array], Predict]] = dict(
    zip(MODEL_NAMES, (_nearest_neighbours, _random_forest, _gaussian_process_of_logits), strict=True)
)
