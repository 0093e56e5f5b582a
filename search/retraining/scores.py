"""Test results of several seeds: means, intervals and confusion matrices. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t


@dataclass(frozen=True, slots=True)
class SeedScore:
    """Test result of one seed.

    Attributes:
        seed: number of the seed in the retraining.
        accuracy: test accuracy, 0 to 1.
        loss: mean negative log-likelihood.
    """

    seed: int
    accuracy: float
    loss: float


def interval_95(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of mean accuracy, by Student's t, within 0 to 1; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = student_t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    mean = float(np.mean(values))
    return max(0.0, mean - float(half)), min(1.0, mean + float(half))


def confusion_matrix(labels: NDArray[np.int64], predicted: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
    """(n_classes, n_classes) counts; row = true class, column = predicted class."""
    return np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def per_class_accuracy(confusion: NDArray[np.int64]) -> list[float | None]:
    """Accuracy of each class, 0 to 1; None for a class without images."""
    totals = confusion.sum(axis=1)
    return [float(right / total) if total else None for right, total in zip(np.diag(confusion), totals, strict=True)]


def seed_score(seed: int, log_probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> SeedScore:
    """Score (N, classes) log-probabilities against (N,) labels."""
    picked = log_probabilities[np.arange(len(labels)), labels]
    return SeedScore(
        seed=seed,
        accuracy=float((log_probabilities.argmax(axis=1) == labels).mean()),
        loss=float(-picked.astype(np.float64).mean()),
    )
