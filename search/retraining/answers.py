"""What the retrained networks answer for the test images: scores of all seeds, and the exported seed's mistakes.

Answers are written while the test set is in use, because nothing reads it again.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t as student_t

from search.analysis.csv_files import csv_text
from search.experiment.final_results import MOST_MISTAKES
from spaces.counted import counted
from trainable.data.datasets import ImageSet
from trainable.files import replacing
from trainable.metric import ACCURACY, METRICS, Metric, label_scores

PREDICTIONS_FILE = "test_predictions.csv"
MISTAKES_FOLDER = "mistakes"

_ANSWER_COLUMNS = ("image", "true", "predicted", "probability", "probability_of_true")
_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9.-]+")
_MOST_NAME_CHARACTERS = 40

LogProbabilities = NDArray[np.float32]
Labels = NDArray[np.int64]


def results_on_test_set(
    predictions: Sequence[LogProbabilities], labels: Labels, class_names: Sequence[str]
) -> dict[str, Any]:
    """The part of `metrics.json` that rests on the test set.

    Args:
        predictions: (N, classes) of each seed; the first seed is exported.
        labels: (N,) true classes.
        class_names: in the order of the labels.
    """
    scores = [{"seed": seed, **score(answers, labels)} for seed, answers in enumerate(predictions)]
    by_name = {name: [one[name] for one in scores] for name in METRICS}
    accuracies = by_name["accuracy"]
    confusion = confusion_matrix(labels, predictions[0].argmax(axis=1), len(class_names))
    return {
        "tested_on": {"split": "test", "n_images": len(labels)},
        "test_accuracy_per_seed": scores,
        "test_accuracy_mean": float(np.mean(accuracies)),
        "test_accuracy_interval_95": interval_95(accuracies),
        "test_metrics": {
            name: {
                "mean": float(np.mean(values)),
                "interval_95": interval_95(values, math.inf if name == "loss" else 1.0),
            }
            for name, values in by_name.items()
        },
        "interval_is_over": "seeds of the training; not over test images",
        "exported_test_accuracy": accuracies[0],
        "class_names": list(class_names),
        "per_class_accuracy": dict(zip(class_names, per_class_accuracy(confusion), strict=True)),
        "confusion_matrix": confusion.tolist(),
        "confusion_matrix_is": "of the exported seed; row = true class, column = predicted class",
        "surest_mistakes": surest_mistakes(predictions[0], labels, class_names),
        "surest_mistakes_are": f"of the exported seed; its answer to each test image is in {PREDICTIONS_FILE}",
    }


def score(log_probabilities: LogProbabilities, labels: Labels) -> dict[str, float]:
    """The label metrics (see `label_scores`, 0 to 1) and `loss`, the mean negative log-likelihood."""
    of_true = log_probabilities[np.arange(len(labels)), labels]
    confusion = confusion_matrix(labels, log_probabilities.argmax(axis=1), log_probabilities.shape[1])
    return {**label_scores(confusion), "loss": float(-of_true.astype(np.float64).mean())}


def interval_95(values: Sequence[float], most: float = 1.0) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean, by Student's t, within 0 to `most`; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, spread = float(np.mean(values)), np.std(values, ddof=1) / np.sqrt(len(values))
    half_width = float(student_t.ppf(0.975, len(values) - 1) * spread)
    return max(0.0, mean - half_width), min(most, mean + half_width)


def tested_sentence(metrics: Mapping[str, Any], metric: Metric) -> str:
    """`Test accuracy of the exported model, the first of 3 seeds: 40.00%; mean of the seeds 47.92% …`."""

    def text(value: float) -> str:
        return metric.text(metric.value(value))

    found = metrics["test_metrics"][metric.name]
    by_seed = [text(one[metric.name]) for one in metrics["test_accuracy_per_seed"]]
    exported = f"Test {metric.title} of the exported model"
    if not found["interval_95"]:
        return f"{exported}: {by_seed[0]}"
    return (
        f"{exported}, the first of {len(by_seed)} seeds: {by_seed[0]}; mean of the seeds {text(found['mean'])}, "
        f"95 % interval {' to '.join(map(text, found['interval_95']))} (by seed: {', '.join(by_seed)})"
    )


def validation_sentence(metrics: Mapping[str, Any]) -> str | None:
    """What search and replicates said of the retrained configuration; None if the search did not train it."""
    metric, replicates = METRICS[metrics["metric"]], metrics["replicates"]
    value = metrics[f"search_{metric.column}"]
    if value is None:
        return None
    name = "" if metric is ACCURACY else f" a {metric.title} of"
    said = f"{metric.text(metric.value(value))} after {counted(metrics['search_epochs'], 'epoch')}"
    sentence = f"On the validation images the search said{name} {said}"
    if not replicates:
        return sentence
    half_width, mean = replicates["half_width_95"], metric.value(replicates[f"{metric.column}_mean"])
    spread = "" if half_width is None else f" ± {metric.size_text(half_width)} {metric.unit}"
    return f"{sentence}; {counted(replicates['n'], 'replicate')} said {metric.text(mean)}{spread}"


def confusion_matrix(labels: Labels, predicted: Labels, n_classes: int) -> Labels:
    """(n_classes, n_classes) counts; row = true class, column = predicted class."""
    return np.bincount(labels * n_classes + predicted, minlength=n_classes**2).reshape(n_classes, n_classes)


def per_class_accuracy(confusion: Labels) -> list[float | None]:
    """Accuracy of each class, 0 to 1; None for a class without images."""
    totals = confusion.sum(axis=1)
    return [float(right / total) if total else None for right, total in zip(np.diag(confusion), totals, strict=True)]


def predictions_csv(
    predictions: Sequence[LogProbabilities],
    labels: Labels,
    class_names: Sequence[str],
    image_names: Sequence[str] | None = None,
) -> str:
    """CSV with one row per test image, in the order of the split; without `image_names`, images are numbered from 0.

    The answers are those of the first seed, which is exported. `n_seeds_right` counts the seeds whose answer is the
    true class.
    """
    answers = _answers(predictions[0], labels, class_names)
    n_right = np.sum([of_seed.argmax(axis=1) == labels for of_seed in predictions], axis=0)
    for row, name in zip(answers, image_names or (), strict=image_names is not None):
        row["image"] = name
    rows = [
        [*(round(value, 6) if isinstance(value, float) else value for value in row.values()), int(n)]
        for row, n in zip(answers, n_right, strict=True)
    ]
    return csv_text((*_ANSWER_COLUMNS, "n_seeds_right"), rows)


def surest_mistakes(
    log_probabilities: LogProbabilities, labels: Labels, class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """The mistakes with the highest probabilities, highest first; `file` is the picture's path within `final/`."""
    wrong = [row for row in _answers(log_probabilities, labels, class_names) if row["true"] != row["predicted"]]
    surest = sorted(wrong, key=lambda row: -row["probability"])[:MOST_MISTAKES]
    names = [
        f"{rank:02d}_true-{_in_a_file_name(row['true'])}_predicted-{_in_a_file_name(row['predicted'])}.png"
        for rank, row in enumerate(surest, 1)
    ]
    return [{"file": f"{MISTAKES_FOLDER}/{name}", **row} for name, row in zip(names, surest, strict=True)]


def write_mistakes(folder: Path, test_set: ImageSet, mistakes: Sequence[dict[str, Any]]) -> None:
    """Write the image of each mistake as a PNG, in the size of the network's input."""
    (folder / MISTAKES_FOLDER).mkdir()
    images, _ = test_set.gather(np.array([mistake["image"] for mistake in mistakes], dtype=np.int64))
    for mistake, image in zip(mistakes, images, strict=True):
        with replacing(folder / mistake["file"]) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")


def _answers(log_probabilities: LogProbabilities, labels: Labels, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Values of `_ANSWER_COLUMNS` for each image; probabilities are 0 to 1."""
    predicted = log_probabilities.argmax(axis=1)
    probabilities = np.exp(log_probabilities.astype(np.float64)).clip(0, 1)
    rows = [
        (i, class_names[true], class_names[said], float(probabilities[i, said]), float(probabilities[i, true]))
        for i, (true, said) in enumerate(zip(labels, predicted, strict=True))
    ]
    return [dict(zip(_ANSWER_COLUMNS, row, strict=True)) for row in rows]


def _in_a_file_name(class_name: str) -> str:
    """A class name reduced to characters that are valid in file names on every system."""
    return _NOT_IN_A_FILE_NAME.sub("-", class_name)[:_MOST_NAME_CHARACTERS].strip(".-") or "class"
