"""Which images an epoch takes, in which order and in which batches."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from trainable.seeding import RunSeed, Stream


def epoch_order(n_images: int, epoch_images: int, seed: RunSeed, epoch: int) -> NDArray[np.int64]:
    """Which images an epoch takes, in order.

    Epochs are cut out of one long sequence of passes; each pass is a permutation of all images, so that none
    comes again before all have been seen.

    Args:
        n_images: in the training set.
        epoch_images: that make an epoch.
        seed: names the permutations.
        epoch: counted from 0.

    Returns:
        (epoch_images,) positions, 0 to n_images - 1.
    """
    start, stop = epoch * epoch_images, (epoch + 1) * epoch_images
    passes = range(start // n_images, math.ceil(stop / n_images))
    orders = [_permutation(n_images, seed.stream(Stream.ORDER, number)) for number in passes]
    skipped = start - passes.start * n_images
    return np.concatenate(orders)[skipped : skipped + epoch_images]


def _permutation(n_images: int, seed: int) -> NDArray[np.int64]:
    return torch.randperm(n_images, generator=torch.Generator().manual_seed(seed)).numpy()


def batch_bounds(n_images: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch starts and stops; a last image alone joins the batch before it.

    Batch norm has no variance to divide by where one image has shrunk to one pixel.
    """
    starts = list(range(0, n_images, batch_size))
    if len(starts) > 1 and n_images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n_images], strict=True))
