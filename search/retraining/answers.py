"""Predictions of the exported network for the test images: a table, and its most confident mistakes as pictures.

They are made while the test set is in use, because nothing reads it again.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.analysis.csv_files import csv_text
from trainable.data.datasets import ImageSet
from trainable.files import replacing

N_MISTAKES = 16
PREDICTIONS_FILE = "test_predictions.csv"
MISTAKES_FOLDER = "mistakes"

_NOT_IN_A_FILE_NAME = re.compile(r"[^A-Za-z0-9.-]+")
_MOST_NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Mistake:
    """A test image with a wrong prediction.

    Attributes:
        file: path of its picture, relative to `final/`.
        image: index in the test split, from 0.
        true, predicted: names of the classes.
        probability: probability of the predicted class, 0 to 1.
        probability_of_true: probability of the true class, 0 to 1.
    """

    file: str
    image: int
    true: str
    predicted: str
    probability: float
    probability_of_true: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def predictions_csv(
    log_probabilities: NDArray[np.float32], labels: NDArray[np.int64], class_names: Sequence[str]
) -> str:
    """CSV with one row per test image, in the order of the split.

    Args:
        log_probabilities: (N, classes).
        labels: (N,) true classes.
        class_names: in the order of the labels.
    """
    predicted, probability, of_true = _answers(log_probabilities, labels)
    rows = [
        [i, class_names[true], class_names[said], round(float(sure), 6), round(float(true_p), 6)]
        for i, (true, said, sure, true_p) in enumerate(zip(labels, predicted, probability, of_true, strict=True))
    ]
    return csv_text(["image", "true", "predicted", "probability", "probability_of_true"], rows)


def surest_mistakes(
    log_probabilities: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_names: Sequence[str],
    n_most: int = N_MISTAKES,
) -> list[Mistake]:
    """The mistakes with the highest probabilities, highest first; ties in the order of the split."""
    predicted, probability, of_true = _answers(log_probabilities, labels)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(-probability[wrong], kind="stable")][:n_most]
    mistakes = []
    for place, i in enumerate(order, 1):
        true, said = class_names[labels[i]], class_names[predicted[i]]
        name = f"{place:02d}_true-{_in_a_file_name(true)}_predicted-{_in_a_file_name(said)}.png"
        mistakes.append(
            Mistake(
                file=f"{MISTAKES_FOLDER}/{name}",
                image=int(i),
                true=true,
                predicted=said,
                probability=float(probability[i]),
                probability_of_true=float(of_true[i]),
            )
        )
    return mistakes


def write_mistakes(folder: Path, test_set: ImageSet, mistakes: Sequence[Mistake]) -> None:
    """Write the image of each mistake as a PNG, in the size of the network's input."""
    (folder / MISTAKES_FOLDER).mkdir()
    images, _ = test_set.gather(np.array([mistake.image for mistake in mistakes], dtype=np.int64))
    for mistake, image in zip(mistakes, images, strict=True):
        with replacing(folder / mistake.file) as temporary:
            Image.fromarray(image).save(temporary, format="PNG")


def _answers(
    log_probabilities: NDArray[np.float32], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """For each image: the predicted class, its probability, and the probability of the true class."""
    rows = np.arange(len(labels))
    predicted = log_probabilities.argmax(axis=1)
    probabilities = np.exp(log_probabilities.astype(np.float64)).clip(0, 1)
    return predicted, probabilities[rows, predicted], probabilities[rows, labels]


def _in_a_file_name(class_name: str) -> str:
    """A class name reduced to characters that are valid in file names on every system."""
    return _NOT_IN_A_FILE_NAME.sub("-", class_name)[:_MOST_NAME_CHARACTERS].strip(".-") or "class"
