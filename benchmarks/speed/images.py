"""Images of the benchmarks: an image folder, the embedded digits, or noise if the content does not matter."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaces import Dataset, InputError
from spaces.errors import expanded
from trainable.data.cache import DecodedSet
from trainable.data.datasets import TrainingData, cut, prepare_training_data
from trainable.data.sources import CIFAR10_MEAN, CIFAR10_STD

# Of 2,560 images, 2,048 are for training and 512 for validation.
VALIDATION_FRACTION = 0.2
NOISE_CLASSES = 10


def add_images_argument(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add `--images`; `otherwise` names the images without it."""
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help=f"an image folder, train/<class>/*.jpg or *.png; without it {otherwise}",
    )


def folder_settings(folder: str, n_images: int | None) -> tuple[str, ...]:
    """Settings of the space `cifar10` for images in a folder.

    Args:
        folder: path of an image folder, which may begin with `~`.
        n_images: number of images, training and validation together; None for all.

    Raises:
        InputError: the folder does not exist.
    """
    root = expanded(folder).resolve()
    if not root.is_dir():
        raise InputError(f"--images is {folder}, but must be a folder that holds train/<class>/*.jpg or *.png.")
    settings = ("dataset.name=folder", f"dataset.root={root}", f"dataset.validation_fraction={VALIDATION_FRACTION}")
    return settings if n_images is None else (*settings, f"dataset.train_limit={n_images}")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Options for the JSON line. Of the image folder only the name, because the line may be published."""
    settings = vars(options)
    return {**settings, "images": None if settings["images"] is None else expanded(settings["images"]).resolve().name}


def images_facts(dataset: Dataset) -> dict[str, Any]:
    """Description of the images, without their path."""
    data = prepare_training_data(dataset)
    return {
        "dataset": dataset.model_dump(exclude={"root"}),
        "n_train": len(data.train),
        "n_validation": len(data.validation),
        "images_sha256": data.decoded.content_sha256,
    }


@dataclass(frozen=True, slots=True)
class Images:
    """Images of a measured process.

    Attributes:
        dataset: data set with its split.
        n_noise: number of noise images that replace those of the data set; None for the data set's own.
    """

    dataset: Dataset
    n_noise: int | None

    def open(self) -> TrainingData:
        if self.n_noise is None:
            return prepare_training_data(self.dataset)
        return cut(noise(self.n_noise, self.dataset.image_size), self.dataset)


def noise(n_images: int, image_size: int) -> DecodedSet:
    """Images of random pixels with balanced classes; training on them takes as long as on any others."""
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
