"""The images that a search may use: the training split, divided into a training and a validation part.

Only `trainable.data.test_set` opens the test split. Neither this module nor a search imports it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spaces import Dataset, InputError
from spaces.printable import warn
from trainable.data.cache import DecodedSet, decode_once, open_decoded
from trainable.data.splits import stratified_pick


@dataclass(frozen=True, eq=False)
class ImageSet:
    """A subset of a decoded split; equal to itself only.

    Attributes:
        decoded: the whole split.
        rows: (N,) int64 row numbers of this set in `decoded`.
        images_per_epoch: number of images in an epoch of training; None for each image once.
    """

    decoded: DecodedSet
    rows: NDArray[np.int64]
    images_per_epoch: int | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def epoch_images(self) -> int:
        """Number of images in an epoch of training on this set."""
        return self.images_per_epoch or len(self)

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.decoded.labels[self.rows]

    def gather(self, positions: NDArray[np.int64] | slice) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Copy (n, H, W, 3) uint8 images and (n,) int64 labels out of the memory map.

        `positions` are (n,) int64 positions in this set, 0 to N - 1, or a slice of them.
        """
        rows = self.rows[positions]
        return self.decoded.images[rows], self.decoded.labels[rows]


@dataclass(frozen=True)
class TrainingData:
    """The training split of a space, divided; all trials of a search use the same division.

    Attributes:
        train: images to fit weights to.
        validation: images to compare configurations on; disjoint from `train`.
        everything: `train` and `validation` together, for retraining.
    """

    train: ImageSet
    validation: ImageSet
    everything: ImageSet

    @property
    def decoded(self) -> DecodedSet:
        return self.everything.decoded


def prepare_training_data(dataset: Dataset, show_progress: bool = False) -> TrainingData:
    """Decode the training split, unless it is in the cache, and divide it.

    If the data set has fewer than `train_limit` images, a line on standard error says so.

    Raises:
        InputError: the data set is missing, not usable, or too small to divide.
    """
    decoded = decode_once(dataset, "train", show_progress)
    n_images = len(decoded.labels)
    if dataset.train_limit is not None and dataset.train_limit > n_images:
        limit = f"`dataset.train_limit` is {dataset.train_limit:,}"
        warn(f"{limit}, and {n_images:,} training images were found: all are used.")
    return cut(decoded, dataset)


def open_training_data(decoded_folder: Path, dataset: Dataset) -> TrainingData:
    """Open the result of `prepare_training_data` in another process of the same machine."""
    return cut(open_decoded(decoded_folder), dataset)


def cut(decoded: DecodedSet, dataset: Dataset) -> TrainingData:
    """Pick at most `train_limit` images and hold out `validation_fraction` of them, both stratified by class.

    The picks depend on the images' labels and on `split_seed` only.

    Raises:
        InputError: a class has too few images.
    """
    generator = np.random.default_rng([dataset.split_seed, 0])
    rows = np.arange(len(decoded.labels), dtype=np.int64)
    if dataset.train_limit is not None:
        rows = stratified_pick(decoded.labels, min(dataset.train_limit, len(rows)), generator)
    labels = decoded.labels[rows]
    _refuse_small_classes(labels, decoded)
    held_out = stratified_pick(labels, round(dataset.validation_fraction * len(rows)), generator, leave_each=1)
    kept = np.setdiff1d(np.arange(len(rows)), held_out)
    if not len(held_out):
        raise InputError(
            f"`dataset.validation_fraction` is {dataset.validation_fraction}, but of {len(rows)} images that "
            f"holds out none. Raise it."
        )
    return TrainingData(
        train=ImageSet(decoded, rows[kept], dataset.images_per_epoch),
        validation=ImageSet(decoded, rows[held_out]),
        everything=ImageSet(decoded, rows, dataset.images_per_epoch),
    )


def _refuse_small_classes(labels: NDArray[np.int64], decoded: DecodedSet) -> None:
    counts = np.bincount(labels, minlength=len(decoded.class_names))
    small = [
        f"class `{name}` has {count} training images, but must have at least 2: one to train on and one to "
        f"validate. Add images, or raise `dataset.train_limit`."
        for name, count in zip(decoded.class_names, counts, strict=True)
        if count < 2
    ]
    if small:
        raise InputError(small)
