"""The metrics that a search can rank by (`search.metric`): how they are computed, compared and shown.

The *value* of a metric is what it is named after, such as an accuracy of 0.97 or a loss of 0.12. Its *score* is
compared: more is always better. For `loss`, the score is minus the loss; for the others it is the value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spaces.schema import MetricName

LEAST_SCALE = 0.005  # lower bound of `Metric.noise_scale`: validation sets are finite
_WORST_LOSS_SCORE = -1e39  # of a loss that is not finite: below any 32-bit float, and finite as quantiles must be


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of `search.metric`.

    Attributes:
        name: its name in a space.
        title: its name in sentences.
        guess: what a run that only guesses does, for sentences about chance.
        worst: score of a diverged run.
        better, worse: where better and worse values lie.
        unit: of differences: percentage points, or nats, in which a negative log-likelihood is measured.
    """

    name: MetricName
    title: str
    guess: str
    worst: float = 0.0
    better: str = "above"
    worse: str = "below"
    unit: str = "points"

    @property
    def column(self) -> str:
        """Its name in journals, tables and trackers."""
        return f"validation_{self.name}"

    @property
    def is_loss(self) -> bool:
        return self.name == "loss"

    def is_in(self, epoch: object) -> bool:
        """Whether an epoch of a trial or replicate has this metric; those of old journals lack two of them."""
        return getattr(epoch, self.column) is not None

    def score(self, epoch: object) -> float:
        """Score of an epoch of a trial or replicate, finite; the epoch must have the metric (`is_in`)."""
        value: float = getattr(epoch, self.column)
        if not self.is_loss:
            return value
        return -value if math.isfinite(value) else _WORST_LOSS_SCORE

    def value(self, score: float) -> float:
        """The value that has this score."""
        return 0.0 - score if self.is_loss else score

    def text(self, score: float) -> str:
        """The value: `97.45%`, or `0.1234` for a loss."""
        if not self.is_loss:
            return f"{score:.2%}"
        loss = 0.0 - score
        return f"{loss:.4f}" if loss < 1e4 else f"{loss:.4g}"

    def size_text(self, size: float) -> str:
        """A difference of scores without its unit: `2.10` (points), or `0.0210` (nats)."""
        return f"{size:.4f}" if self.is_loss else f"{100 * size:.2f}"

    def noise_scale(self, score: float) -> float:
        """Standard deviation between seeds at this score, up to a factor that trials share.

        `a (1 - a)` for the three metrics between 0 and 1, whose spread vanishes at both ends and is about constant on
        the scale of logits. The loss itself for `loss`: it has no upper end, and its spread is about constant on the
        scale of logarithms.
        """
        return max(0.0 - score if self.is_loss else score * (1 - score), LEAST_SCALE)


_ALL = (
    Metric("accuracy", "accuracy", "always names the commonest class"),
    Metric("balanced_accuracy", "balanced accuracy", "names classes at random"),
    Metric("macro_f1", "macro F1", "names classes at random"),
    Metric("loss", "loss", "answers with the shares of the classes", _WORST_LOSS_SCORE, "below", "above", "nats"),
)
METRICS: Mapping[str, Metric] = {metric.name: metric for metric in _ALL}
ACCURACY = METRICS["accuracy"]


def label_scores(confusion: ArrayLike) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro F1 by name, each 0 to 1, as scikit-learn computes them.

    Balanced accuracy is the mean recall of the classes that have images. Macro F1 is the mean F1 of the classes that
    have images or are predicted: a class that is predicted but has no image counts with an F1 of 0.

    Args:
        confusion: (classes, classes) counts, not all 0; row = true class, column = predicted class.
    """
    counts: NDArray[np.float64] = np.asarray(confusion, dtype=np.float64)
    right, n_true, n_predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    has_images, occurs = n_true > 0, n_true + n_predicted > 0
    return {
        "accuracy": float(right.sum() / counts.sum()),
        "balanced_accuracy": float((right[has_images] / n_true[has_images]).mean()),
        "macro_f1": float((2 * right[occurs] / (n_true + n_predicted)[occurs]).mean()),
    }
