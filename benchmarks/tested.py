"""Test accuracies of two retrainings, and their difference: `python -m benchmarks.tested FINAL FINAL`.

FINAL is a folder that `search.retrain` left. The intervals are for other seeds *and* other test images. Seeds and
images are crossed: each of S seeds answers all N images. So the variance of a mean accuracy is estimated as the sum of
`var(accuracies of the seeds) / S` and `var(share of the seeds that are right, of the images) / N`. What seeds and
images have together is counted twice, which makes the interval a little too wide. For a difference, the seeds' parts of
both retrainings are added, and the images' part is that of the differences by image, because both answer the same
images. The interval is Student's t, with the degrees of freedom of Welch and Satterthwaite (Satterthwaite, "An
Approximate Distribution of Estimates of Variance Components", Biometrics 1946).
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import t as student_t

from benchmarks.speed.report import print_json, table_text
from benchmarks.stats import Array
from search.retraining.answers import PREDICTIONS_FILE
from spaces import InputError
from spaces.command import CommandParser, run_command


@dataclass(frozen=True, slots=True, eq=False)
class SeedScores:
    """What a retraining has on the test images.

    Attributes:
        title: the folder, and its trial.
        names: N test images.
        accuracies: (S,) accuracy of each seed, 0 to 1.
        right: (N,) share of the seeds that are right, by image.
    """

    title: str
    names: tuple[str, ...]
    accuracies: Array
    right: Array


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.tested",
        description="Test accuracies of two retrainings and their difference, for other seeds and other test images.",
        epilog="example: python -m benchmarks.tested results/NAME/final results/OTHER/final",
    )
    parser.add_argument("finals", nargs=2, type=Path, metavar="FINAL", help="folder that search.retrain left")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    first, second = (read_tested(folder) for folder in options.finals)
    if first.names != second.names:
        raise InputError(f"{options.finals[1]}: was tested on other images than {options.finals[0]}.")
    found = {one.title: mean_of(one) for one in (first, second)} | {"difference": difference_of(first, second)}
    rows = [(title, f"{100 * mean:.2f}", f"{100 * half:.2f}") for title, (mean, half) in found.items()]
    print(table_text(("test accuracy, points", "mean", "±"), rows))
    by_title = {title: {"mean": mean, "half_width_95": half} for title, (mean, half) in found.items()}
    print_json({"benchmark": "tested", "n_images": len(first.names), **by_title})
    return 0


def read_tested(folder: Path) -> SeedScores:
    """Read `metrics.json` and `test_predictions.csv` of a retraining.

    Raises:
        InputError: a file is missing or of another kind, or there are fewer than two seeds.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        with (folder / PREDICTIONS_FILE).open(newline="") as file:
            rows = list(csv.DictReader(file))
        accuracies = np.array([one["accuracy"] for one in metrics["test_accuracy_per_seed"]])
        n_right, title = np.array([int(row["n_seeds_right"]) for row in rows]), f"{folder} (trial {metrics['trial']})"
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: is not what search.retrain of this version leaves. Retrain again.") from None
    if len(accuracies) < 2 or not len(n_right):
        raise InputError(f"{folder}: has {len(accuracies)} seeds, but must have at least 2, and a test image.")
    return SeedScores(title, tuple(row["image"] for row in rows), accuracies, n_right / len(accuracies))


def mean_of(one: SeedScores) -> tuple[float, float]:
    """Mean accuracy, and half of its 95 % interval."""
    return float(one.right.mean()), half_width([one.accuracies, one.right])


def difference_of(first: SeedScores, second: SeedScores) -> tuple[float, float]:
    """Difference of the mean accuracies, and half of its 95 % interval."""
    differences = first.right - second.right
    return float(differences.mean()), half_width([first.accuracies, second.accuracies, differences])


def half_width(samples: Sequence[Array]) -> float:
    """Half of the 95 % interval of a sum of independent means, one of each sample; each has at least two values."""
    variances = np.array([sample.var(ddof=1) / len(sample) for sample in samples])
    freedoms = np.array([len(sample) - 1 for sample in samples])
    total = float(variances.sum())
    if not total:
        return 0.0
    return float(student_t.ppf(0.975, total**2 / (variances**2 / freedoms).sum()) * np.sqrt(total))


if __name__ == "__main__":
    sys.exit(main())
