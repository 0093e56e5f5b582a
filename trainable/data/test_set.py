"""The test split. Only retraining imports this module; a search cannot reach it."""

import numpy as np

from spaces import Dataset
from trainable.data.cache import decode_once
from trainable.data.datasets import ImageSet


def check_test_set(dataset: Dataset) -> None:
    """Decode the test split, so that an unreadable file is found before hours of training.

    No image is returned and nothing is predicted. Only :func:`open_test_set` gives access to the images.

    Raises:
        InputError: the test split is missing or not usable; the message names or counts all unreadable files.
    """
    decode_once(dataset, "test")


def open_test_set(dataset: Dataset) -> ImageSet:
    """All images of the test split.

    Raises:
        InputError: the test split is missing or not usable.
    """
    decoded = decode_once(dataset, "test")
    return ImageSet(decoded, np.arange(len(decoded.labels), dtype=np.int64))
