"""Order and batches of the images of an epoch."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from trainable.seeding import RunSeed, Stream


def epoch_order(n_images: int, epoch_images: int, seed: RunSeed, epoch: int) -> NDArray[np.int64]:
    """Positions of the images of one epoch, in order.

    Epochs are consecutive pieces of one long sequence of permutations of all images, so no image is repeated before
    all others have been used.

    Args:
        n_images: number of images in the training set.
        epoch_images: number of images in an epoch.
        seed: names the random streams of the permutations.
        epoch: number of the epoch, counted from 0.

    Returns:
        (epoch_images,) int64 positions, 0 to n_images - 1.
    """
    start, stop = epoch * epoch_images, (epoch + 1) * epoch_images
    passes = range(start // n_images, math.ceil(stop / n_images))
    orders = [_permutation(n_images, seed.stream(Stream.ORDER, number)) for number in passes]
    skipped = start - passes.start * n_images
    return np.concatenate(orders)[skipped : skipped + epoch_images]


def _permutation(n_images: int, seed: int) -> NDArray[np.int64]:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed)).numpy()


def batch_bounds(n_images: int, batch_size: int) -> list[tuple[int, int]]:
    """Start and stop of each batch. A last batch of one image is merged into the batch before it.

    With one image, whose last feature maps may have a single pixel, batch norm would have no variance.
    """
    starts = list(range(0, n_images, batch_size))
    if len(starts) > 1 and n_images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_images], strict=True))
