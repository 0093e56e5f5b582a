"""Batches of a run: from the memory map with albumentations, or from images that are kept on the device."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spaces.printable import warn_once
from trainable.augmentation.batched import BatchedAugmenter
from trainable.augmentation.policy import AugmentationPolicy, Augmenter
from trainable.compute import free_device_bytes
from trainable.data.datasets import ImageSet
from trainable.seeding import RunSeed, Stream

Bounds = list[tuple[int, int]]
Batch = tuple[Tensor, Tensor]

# Device memory that stays free for a trial's network, its activations and the augmenter's chunks.
RESERVED_BYTES = 2**30


class HostBatches:
    """Batches of (B, H, W, 3) uint8 images and (B,) int64 labels, augmented by albumentations in this process."""

    def __init__(self, train: ImageSet, policy: AugmentationPolicy, device: torch.device) -> None:
        self._train = train
        self._device = device
        self._augmenter = Augmenter(policy, train.decoded.image_size)

    def augmented(self, order: NDArray[np.int64], bounds: Bounds, seed: int) -> Iterator[Batch]:
        """Augmented batches of one training epoch.

        Args:
            order: (n,) int64 positions in the training set, in the order of training.
            bounds: start and stop of each batch in `order`.
            seed: seed of the augmentation, in [0, 2^63).
        """
        self._augmenter.reseed(seed)
        for start, stop in bounds:
            images, labels = self._train.gather(order[start:stop])
            yield _on(self._device, self._augmenter(images), labels)

    def plain(self, images: ImageSet, size: int) -> Iterator[Batch]:
        """Batches of `size` images in order, without augmentation; the last batch may be smaller."""
        for start in range(0, len(images), size):
            yield _on(self._device, *images.gather(slice(start, start + size)))


class DeviceImages:
    """Cache of whole image sets on a device; each set is copied there once."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._resident: dict[ImageSet, Batch] = {}

    def of(self, images: ImageSet) -> Batch:
        """All (N, H, W, 3) uint8 images and (N,) int64 labels of a set."""
        if images not in self._resident:
            self._resident[images] = _on(self.device, *images.gather(slice(None)))
        return self._resident[images]

    def have_room_for(self, train: ImageSet, validation: ImageSet | None) -> bool:
        """Whether the device holds `train` already, or has free memory for `DeviceBatches` of these sets."""
        free_bytes = free_device_bytes(self.device)
        return train in self._resident or free_bytes is None or resident_bytes(train, validation) <= free_bytes


def resident_bytes(train: ImageSet, validation: ImageSet | None) -> int:
    """Memory that `DeviceBatches` needs: all images, an epoch's images in order, their augmented copies, a reserve."""
    image_bytes = train.decoded.image_size**2 * 3
    return RESERVED_BYTES + image_bytes * (len(train) + len(validation or ()) + 2 * train.epoch_images)


class DeviceBatches:
    """`HostBatches` from images on the device, which augments those of a whole epoch at the start of the epoch."""

    def __init__(self, train: ImageSet, policy: AugmentationPolicy, resident: DeviceImages) -> None:
        self._train = train
        self._resident = resident
        self._augmenter = BatchedAugmenter(policy, train.decoded.image_size, resident.device)

    def augmented(self, order: NDArray[np.int64], bounds: Bounds, seed: int) -> Iterator[Batch]:
        images, labels = self._resident.of(self._train)
        order_there = torch.from_numpy(order).to(images.device)
        self._augmenter.reseed(seed)
        epoch_images, epoch_labels = self._augmenter(images[order_there]), labels[order_there]
        for start, stop in bounds:
            yield epoch_images[start:stop], epoch_labels[start:stop]

    def plain(self, images: ImageSet, size: int) -> Iterator[Batch]:
        pixels, labels = self._resident.of(images)
        return zip(torch.split(pixels, size), torch.split(labels, size), strict=True)


def resident_batches(
    train: ImageSet, validation: ImageSet | None, policy: AugmentationPolicy, images: DeviceImages
) -> HostBatches | DeviceBatches:
    """Batches from the device if the images fit into its free memory, otherwise batches from the host."""
    if images.have_room_for(train, validation):
        return DeviceBatches(train, policy, images)
    warn_once(
        f"The images need {resident_bytes(train, validation) / 1e9:.1f} GB of the GPU's memory, which has not so much "
        f"free: they stay on the host and are augmented there, which is slower. Lower `dataset.train_limit` or "
        f"`dataset.image_size` to have them on the GPU."
    )
    return HostBatches(train, policy, images.device)


def epoch_order(n_images: int, epoch_images: int, seed: RunSeed, epoch: int) -> NDArray[np.int64]:
    """Positions of the images of one epoch, in order.

    Epochs are consecutive pieces of one long sequence of permutations of all images, so no image is repeated before
    all others have been used.

    Args:
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


def _on(device: torch.device, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Batch:
    return torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)


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
