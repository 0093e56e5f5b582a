"""The test split. Only retraining imports this module: nothing that a search runs can reach it."""

import numpy as np

from spaces import Dataset
from trainable.data.cache import decode_once
from trainable.data.datasets import ImageSet


def check_test_set(dataset: Dataset) -> None:
    """Decode the test split, so that a bad file of it is found before hours of training and not after them.

    Nothing is predicted and no image is handed out: the one look is :func:`open_test_set`.

    Raises:
        InputError: it is not there or not usable; every unreadable file is named or counted.
    """
    decode_once(dataset, "test", show_progress=False)


def open_test_set(dataset: Dataset, show_progress: bool = False) -> ImageSet:
    """All images of the test split.

    Raises:
        InputError: it is not there or not usable.
    """
    decoded = decode_once(dataset, "test", show_progress)
    return ImageSet(decoded, np.arange(len(decoded.labels), dtype=np.int64))
