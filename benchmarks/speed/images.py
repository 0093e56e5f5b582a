"""Which images a benchmark uses: an image folder, the embedded digits, or noise where content does not matter."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaces import Dataset, InputError, Space, load_space
from spaces.errors import expanded
from trainable.data.cache import DecodedSet
from trainable.data.datasets import TrainingData, cut, prepare_training_data
from trainable.data.sources import CIFAR10_MEAN, CIFAR10_STD

# A fifth of what is taken is held out: 2,048 + 512 images of 2,560.
VALIDATION_FRACTION = 0.2
NOISE_CLASSES = 10


@dataclass(frozen=True, slots=True)
class SpaceChoice:
    """A space and the settings laid over it, as the commands take them.

    Attributes:
        space: a shipped name.
        settings: `section.key=value` each.
    """

    space: str
    settings: tuple[str, ...]

    def load(self) -> Space:
        return load_space(self.space, self.settings)

    @property
    def arguments(self) -> list[str]:
        """For a command line."""
        return [self.space, *(word for setting in self.settings for word in ("--set", setting))]


def add_images_argument(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """`--images`, whose help says what is used without it."""
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help=f"an image folder, train/<class>/*.jpg or *.png; without it {otherwise}",
    )


def folder_settings(folder: str, n_images: int | None) -> tuple[str, ...]:
    """Settings for the space `cifar10` that take its images from a folder.

    Args:
        folder: may begin with `~`.
        n_images: how many to take, training and validation together; None for all.

    Raises:
        InputError: the folder is not there.
    """
    root = expanded(folder).resolve()
    if not root.is_dir():
        raise InputError(f"--images is {folder}, but must be a folder that holds train/<class>/*.jpg or *.png.")
    settings = ("dataset.name=folder", f"dataset.root={root}", f"dataset.validation_fraction={VALIDATION_FRACTION}")
    return settings if n_images is None else (*settings, f"dataset.train_limit={n_images}")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """A command's options for its JSON line, which may be published: of a folder the name, not where it lies."""
    settings = vars(options)
    return {**settings, "images": None if settings["images"] is None else expanded(settings["images"]).resolve().name}


def images_facts(dataset: Dataset) -> dict[str, Any]:
    """Which images were used, likewise without their place."""
    data = prepare_training_data(dataset)
    return {
        "dataset": dataset.model_dump(exclude={"root"}),
        "n_train": len(data.train),
        "n_validation": len(data.validation),
        "images_sha256": data.decoded.content_sha256,
    }


@dataclass(frozen=True, slots=True)
class Images:
    """Where a measured process gets its images.

    Attributes:
        dataset: how they are cut.
        n_noise: so many images of noise in place of the data set's; None for the data set's own.
    """

    dataset: Dataset
    n_noise: int | None

    def open(self) -> TrainingData:
        if self.n_noise is None:
            return prepare_training_data(self.dataset)
        return cut(noise(self.n_noise, self.dataset.image_size), self.dataset)


def noise(n_images: int, image_size: int) -> DecodedSet:
    """Images of random pixels, as many of each class: as fast to train on as any others of that size."""
    generator = np.random.default_rng(0)
    return DecodedSet(
        images=generator.integers(0, 256, (n_images, image_size, image_size, 3), dtype=np.uint8),
        labels=np.arange(n_images, dtype=np.int64) % NOISE_CLASSES,
        class_names=tuple(str(label) for label in range(NOISE_CLASSES)),
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        content_sha256="noise",
        folder=Path(),
    )
