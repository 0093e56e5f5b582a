"""A Gaussian process over configurations and epochs, which predicts final scores from all partial learning curves.

The covariance of run i after epoch e and run j after epoch f, in units of a scale that is estimated, is

    2 exp(-d/1.5) + matern52(|x_i(e) - x_j(f)| / length) exp(-d/1.6) + own [i = j] exp(-d),   d = |ln(e / f)|

The terms are the common shape of all curves, the effect of the configuration, and the effect of a run's random streams.
The point x_i(e) describes the learning rates *until epoch e*, because before its first decay a curve does not depend on
gamma.

Source: a joint process over configurations and epochs is the idea of Swersky, Snoek and Adams, "Freeze-Thaw Bayesian
Optimization" (2014); the covariance is the project's. Pure functions: no Ray, no clock, no random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular

from search.policy.coordinates import Array, Values, features, values_of
from spaces.parameters import Hyperparameters, Searched

# Last epochs of the bins over which accuracies are averaged, for curves of 27 epochs.
BIN_ENDS = (1, 3, 6, 9, 13, 18, 22, 25, 27)
# Largest number of bins in a model. The time of a decision grows with its square, that of a fit with its cube.
MOST_BINS = 500
MOST_AT_ONCE = 2000  # forecasts in one matrix, which bounds its memory
LENGTHS = (0.6, 1.0, 1.7)  # of the Matérn covariance
NOISES = (0.03, 0.1, 0.3)  # variance of the result of one epoch, in units of the scale
OWN_VARIANCES = (0.05, 0.3)  # variance of the effect of a run's random streams, in units of the scale
SHAPE_VARIANCE = 2.0
PRIOR_SCALE = 0.05  # counts like one result; the scales of real searches are 0.02 to 0.14
LOSS_BOUNDS = (1e-4, 1e2)  # nats


@dataclass(frozen=True, slots=True)
class Curve:
    """The known part of a learning curve.

    Attributes:
        config: the trained configuration.
        scores: scores of epochs 1, 2, …: accuracies (or another metric of 0 to 1), or losses with a minus sign.
    """

    config: Hyperparameters
    scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class KernelParameters:
    """Parameters of the covariance: members of `LENGTHS`, `NOISES` and `OWN_VARIANCES`."""

    length: float
    noise: float
    own: float


def to_z(scores: Array, is_loss: bool = False) -> Array:
    """Scores on a scale on which more is better and all have about the same noise.

    Metrics of 0 to 1 by the arcsine transform 2 asin(sqrt(score)), to 0 to pi. Losses, whose noise is about
    proportional to them, as minus their logarithm, within `LOSS_BOUNDS` so that a huge one does not set the scale.
    """
    if is_loss:
        return np.asarray(-np.log(np.clip(np.negative(scores), *LOSS_BOUNDS)))
    return np.asarray(2 * np.arcsin(np.sqrt(np.clip(scores, 0.0, 1.0))))


def from_z(z: Array, is_loss: bool = False) -> Array:
    """The inverse of `to_z`."""
    return np.asarray(-np.exp(-z) if is_loss else np.sin(np.clip(z, 0.0, np.pi) / 2) ** 2)


class CurveModel:
    """The process, conditional on partial curves.

    Args:
        searched: the searched parameters by name.
        max_epochs: epochs of a complete curve.
        curves: N curves; at least one of them has a result.
        parameters: of the covariance; None: the most likely of all combinations.
        is_loss: whether the scores are losses, as for `to_z`.
    """

    def __init__(
        self,
        searched: Mapping[str, Searched],
        max_epochs: int,
        curves: Sequence[Curve],
        parameters: KernelParameters | None = None,
        is_loss: bool = False,
    ) -> None:
        self._searched, self._max_epochs, self._n_curves = searched, max_epochs, len(curves)
        bins = bins_of(curves, max_epochs, is_loss)
        self._bins, self._values = bins, values_of([curve.config for curve in curves])
        values = {name: column[bins.curve] for name, column in self._values.items()}
        self._points = _Points(features(searched, values, bins.epoch), np.log(bins.epoch), bins.curve)
        self._mean = float(bins.z.mean())
        parts = _Parts.between(self._points, self._points)
        if parameters is None:
            grid = [KernelParameters(*values) for values in product(LENGTHS, NOISES, OWN_VARIANCES)]
            parameters = max(grid, key=lambda tried: self._fit(parts, tried).log_likelihood)
        self.parameters = parameters
        self._fitted = self._fit(parts, parameters)

    def of_curves(self) -> tuple[Array, Array]:
        """Posterior means and standard deviations of the N curves after the last epoch, as values of `to_z`, (N,)."""
        return self._at_end(self._values, np.arange(self._n_curves))

    def of_configs(self, values: Values) -> tuple[Array, Array]:
        """The same for a new run of each of M configurations, (M,)."""
        return self._at_end(values, np.full(len(values["lr"]), -1))

    def similarity(self, values: Values, others: Values) -> Array:
        """Prior correlations, 0 to 1, of the effects of M and K configurations after the last epoch, (M, K)."""
        first, second = (self._end_points(found, np.full(len(found["lr"]), -1)) for found in (values, others))
        return matern52(distances(first.features, second.features) / self.parameters.length)

    def _fit(self, parts: _Parts, parameters: KernelParameters) -> _Fit:
        covariance = parts.covariance(parameters)
        covariance[np.diag_indices_from(covariance)] += parameters.noise / self._bins.count + 1e-8
        factor = cholesky(covariance, lower=True, overwrite_a=True, check_finite=False)
        deviations = self._bins.z - self._mean
        weights = cho_solve((factor, True), deviations, check_finite=False)
        # The most likely scale has a closed form. With the prior, equal results do not look certain.
        n, squares = len(deviations), float(deviations @ weights)
        log_likelihood = -0.5 * n * np.log(squares / n + 1e-12) - float(np.log(np.diag(factor)).sum())
        return _Fit(factor, weights, (squares + PRIOR_SCALE) / (n + 1), log_likelihood)

    def _at_end(self, values: Values, curve: NDArray[np.int64]) -> tuple[Array, Array]:
        if len(curve) > MOST_AT_ONCE:
            stretches = [slice(i, i + MOST_AT_ONCE) for i in range(0, len(curve), MOST_AT_ONCE)]
            several = [self._at_end({key: x[part] for key, x in values.items()}, curve[part]) for part in stretches]
            return np.concatenate([mean for mean, _ in several]), np.concatenate([sd for _, sd in several])
        parts = _Parts.between(self._end_points(values, curve), self._points)
        covariance = parts.covariance(self.parameters)
        explained = solve_triangular(self._fitted.factor, covariance.T, lower=True, check_finite=False)
        prior = SHAPE_VARIANCE + 1 + self.parameters.own
        variance = self._fitted.scale * np.maximum(prior - (explained**2).sum(0), 1e-9)
        return self._mean + covariance @ self._fitted.weights, np.asarray(np.sqrt(variance))

    def _end_points(self, values: Values, curve: NDArray[np.int64]) -> _Points:
        epochs = np.full(len(curve), self._max_epochs)
        return _Points(features(self._searched, values, epochs), np.log(epochs), curve)


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Means of accuracies over neighbouring epochs, M in all.

    Attributes:
        curve: (M,) index of the curve.
        epoch: (M,) last epoch of the bin that is known.
        z: (M,) mean of the values of `to_z`.
        count: (M,) number of epochs in the bin.
    """

    curve: NDArray[np.int64]
    epoch: NDArray[np.int64]
    z: Array
    count: NDArray[np.int64]


def bins_of(curves: Sequence[Curve], max_epochs: int, is_loss: bool = False) -> Bins:
    """The bins of curves, at most `MOST_BINS`.

    Where there are more, the first bins of the shortest curves are left out first, because the last ones say more about
    the end; then whole curves, of the shortest ones the oldest first.
    """
    ends = sorted({max(1, round(end * max_epochs / BIN_ENDS[-1])) for end in BIN_ENDS})
    found = [
        _bins_of_curve(index, to_z(np.array(curve.scores, float), is_loss), ends) for index, curve in enumerate(curves)
    ]
    n_over = sum(map(len, found)) - MOST_BINS
    by_length = sorted((bins for bins in found if bins), key=lambda bins: bins[-1][1])
    for n_kept in (1, 0):
        for bins in by_length:
            n_dropped = min(max(n_over, 0), len(bins) - n_kept)
            del bins[:n_dropped]
            n_over -= n_dropped
    rows = [row for bins in found for row in bins]
    curve, epoch, z, count = zip(*rows, strict=True)
    return Bins(np.array(curve), np.array(epoch), np.array(z), np.array(count))


def _bins_of_curve(index: int, z: Array, ends: Sequence[int]) -> list[tuple[int, int, float, int]]:
    if not len(z):
        return []
    last = [*(end for end in ends if end < len(z)), len(z)]
    starts = [0, *last[:-1]]
    bins = zip(starts, last, np.add.reduceat(z, starts), strict=True)
    return [(index, end, float(total) / (end - start), end - start) for start, end, total in bins]


@dataclass(frozen=True, slots=True, eq=False)
class _Points:
    features: Array
    log_epoch: Array
    curve: NDArray[np.int64]  # -1: a configuration without a run


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    factor: Array  # lower Cholesky factor of the covariance of the bins
    weights: Array
    scale: float
    log_likelihood: float  # up to a constant


@dataclass(frozen=True, slots=True, eq=False)
class _Parts:
    """The parts of the covariance between M and K points that do not depend on its parameters.

    (M, K) each; where all M points have the same epoch, `shape` and `fading` are (1, K). `own` is None where no two
    points have the same run.
    """

    distance: Array
    shape: Array
    fading: Array
    own: Array | None

    @classmethod
    def between(cls, first: _Points, second: _Points) -> _Parts:
        is_one_epoch = len(first.log_epoch) and (first.log_epoch == first.log_epoch[0]).all()
        ratio = np.abs((first.log_epoch[:1] if is_one_epoch else first.log_epoch)[:, None] - second.log_epoch)
        is_same = (first.curve[:, None] == second.curve) & (second.curve >= 0)
        own = is_same * np.exp(-ratio) if is_same.any() else None
        distance = distances(first.features, second.features)
        return cls(distance, SHAPE_VARIANCE * np.exp(-ratio / 1.5), np.exp(-ratio / 1.6), own)

    def covariance(self, parameters: KernelParameters) -> Array:
        found = matern52(self.distance / parameters.length)
        found *= self.fading
        found += self.shape
        if self.own is not None:
            found += parameters.own * self.own
        return found


def distances(first: Array, second: Array) -> Array:
    """Euclidean distances between M and K points, (M, K)."""
    # In place, here and below: most of the time would go to new memory.
    found = np.asarray(first @ (-2 * second.T))
    found += (first**2).sum(1)[:, None]
    found += (second**2).sum(1)
    np.maximum(found, 0.0, out=found)
    return np.sqrt(found, out=found)


def matern52(distances: Array) -> Array:
    """The Matérn covariance of smoothness 5/2, variance 1 and length 1, of the same shape."""
    scaled = np.asarray(np.sqrt(5.0) * distances)
    found = scaled / 3
    found += 1
    found *= scaled
    found += 1
    np.negative(scaled, out=scaled)
    found *= np.exp(scaled, out=scaled)
    return found
