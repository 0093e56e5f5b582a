"""Puts learning curves of DeepOBS' baselines into the form of `measure_curves`' tables:
`python -m benchmarks.replay.deepobs_curves SOURCE.csv.gz`.

CIFAR-10 with the network 3c3d, three optimizers and 36 learning rates each, constant over 100 epochs; three of the
settings with nine more seeds. From https://github.com/fsschneider/DeepOBS_Baselines (MIT): F. Schneider, L. Balles
and P. Hennig, "DeepOBS: A Deep Learning Optimizer Benchmark Suite" (ICLR 2019).
"""

import csv
import gzip
import io
import sys
from pathlib import Path
from typing import Any

from benchmarks.replay.measure_curves import FOLDER, MEASURED
from trainable.files import replacing, write_json

NAME = "deepobs"
EPOCHS = 81
# The project's space has no optimizer, and no learning rate above 10: stand-ins that a sampler cannot tell from the
# real thing, as a choice has no order and a logarithm no unit.
MOMENTUM_OF = {"GradientDescentOptimizer": 0.0, "AdamOptimizer": 0.5, "MomentumOptimizer": 0.99}
LR_FACTOR = 0.1
FIRST_SEED = 42
SOURCE_COLUMNS = ("train_loss", "train_acc", "test_loss", "test_acc")

FACTS: dict[str, Any] = {
    "space": {
        "dataset": {"name": "cifar10"},
        "training": {"max_epochs": EPOCHS, "batch_size": 128},
        "search": {"trials": 100, "grace_epochs": 1, "reduction_factor": 3},
        "space": {"lr": {"loguniform": [1e-6, 10.0]}, "momentum": {"choice": list(MOMENTUM_OF.values())}},
        "baseline": {"lr": 1e-4, "momentum": 0.5},
    },
    "source": "https://github.com/fsschneider/DeepOBS_Baselines, cifar10_3c3d",
    "licence": "MIT",
    "stands_for": {
        "lr": "a tenth of the learning rate",
        "momentum": "the optimizer: 0 gradient descent, 0.99 momentum 0.99, 0.5 Adam",
        "baseline": "Adam with its usual learning rate of 0.001",
        "validation_accuracy": "accuracy on the test images",
    },
}


def convert(source: Path) -> str:
    """The table as CSV. Further seeds of a setting follow as configurations with the same values."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if 1 <= int(row["epoch"]) <= EPOCHS]
    runs: dict[tuple[int, float, float], list[dict[str, str]]] = {}
    for row in rows:
        lr = float(f"{float(row['lr']) * LR_FACTOR:.9g}")
        key = (int(row["seed"]) - FIRST_SEED, MOMENTUM_OF[row["optimizer"]], lr)
        runs.setdefault(key, []).append(row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["config", "lr", "momentum", "epoch", *MEASURED])
    for number, ((_, momentum, lr), epochs) in enumerate(sorted(runs.items())):
        for row in sorted(epochs, key=lambda row: int(row["epoch"])):
            writer.writerow([number, f"{lr:.9g}", momentum, row["epoch"], *(row[name] for name in SOURCE_COLUMNS)])
    return text.getvalue()


def main(source: str) -> None:
    with replacing(FOLDER / f"{NAME}.csv.gz") as temporary:
        temporary.write_bytes(gzip.compress(convert(Path(source)).encode(), mtime=0))
    write_json(FOLDER / f"{NAME}.json", FACTS)


if __name__ == "__main__":
    main(*sys.argv[1:])
