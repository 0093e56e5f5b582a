"""The test split. Only retraining imports this module: nothing that a search runs can reach it."""

import numpy as np

from spaces import Dataset
from trainable.cache import decode_once
from trainable.datasets import ImageSet
from trainable.sources import open_source


def list_test_set(dataset: Dataset) -> None:
    """Look whether the test split is there and well formed, without decoding an image of it.

    Raises:
        InputError: it is not.
    """
    open_source(dataset, "test")


def open_test_set(dataset: Dataset, show_progress: bool = False) -> ImageSet:
    """All images of the test split.

    Raises:
        InputError: it is not there or not usable.
    """
    decoded = decode_once(dataset, "test", show_progress)
    return ImageSet(decoded, np.arange(len(decoded.labels), dtype=np.int64))
