"""Pictures of a retraining in `final/`."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search.retraining.training_runs import Progress
from spaces.printable import shortened
from trainable.files import replacing

DPI = 130
# Largest numbers of counts and of names that are readable on one page.
MOST_COUNTS = 20
MOST_NAMES = 50
MOST_NAME_CHARACTERS = 24


def draw_learning_curve(path: Path, progress: Sequence[Progress], title: str) -> None:
    """Write a PNG of training loss and accuracy over the epochs, one line per seed, in ascending order of epochs."""
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    losses, accuracies = figure.subplots(2, 1, sharex=True)
    for seed in sorted({one.number for one in progress}):
        curve = [one for one in progress if one.number == seed]
        epochs = [one.epoch for one in curve]
        losses.plot(epochs, [one.train_loss for one in curve], marker=".", label=f"seed {seed}")
        accuracies.plot(epochs, [100 * one.train_accuracy for one in curve], marker=".")
    losses.set_ylabel("training loss")
    accuracies.set_ylabel("training accuracy, %")
    accuracies.set_xlabel("epoch")
    accuracies.xaxis.get_major_locator().set_params(integer=True)
    for axes in (losses, accuracies):
        axes.grid(visible=True, color="#dddddd", linewidth=0.6)
    losses.legend(frameon=False)
    _save(figure, path, title)


def draw_confusion_matrix(path: Path, confusion: NDArray[np.int64], class_names: Sequence[str], title: str) -> None:
    """Write a PNG of (classes, classes) counts; row = true class, column = predicted class.

    Colours are shares of the true class, figures are numbers of images.
    """
    n_classes = len(class_names)
    side = min(14.0, 3.5 + 0.45 * n_classes)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if n_classes <= MOST_COUNTS:
        for row, column in np.argwhere(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{confusion[row, column]:,}", ha="center", va="center", color=colour, fontsize=8)
    names = [shortened(name, MOST_NAME_CHARACTERS) for name in class_names] if n_classes <= MOST_NAMES else []
    # A dollar sign in a name would start a formula.
    axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    _save(figure, path, title)


def _save(figure: Figure, path: Path, title: str) -> None:
    figure.suptitle(title, parse_math=False, fontsize=11)
    with replacing(path) as temporary, warnings.catch_warnings():
        # Hides warnings about characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        # Without the version of matplotlib, so that equal pictures are equal files.
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
