"""Augmentation with albumentations 2.0: the policy, and what applies it to a batch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

# albumentations asks the network for a newer version when it is imported, unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from spaces import Hyperparameters

# albumentations runs inside the training process, which already has a thread a core; more only compete.
cv2.setNumThreads(0)


@dataclass(frozen=True, slots=True)
class AugmentationPolicy:
    """What is done to a training image, in the order of the attributes.

    Attributes:
        flip_p: probability of a horizontal flip.
        shift_scale_rotate_p: probability of one shift, scaling and rotation together.
        shift_limit: the most that it moves along each axis, as a fraction of the side.
        scale_limit: the most that it grows or shrinks, as a fraction; the same for both axes.
        rotate_limit_degrees: the most that it turns either way.
        coarse_dropout_p: probability that one square hole is cut.
        hole_px: side of the hole, in pixels.
        hole_fill: colour of the hole, RGB, 0 to 255.
    """

    flip_p: float
    shift_scale_rotate_p: float
    coarse_dropout_p: float
    hole_px: int
    hole_fill: tuple[float, float, float]
    shift_limit: float = 0.0625
    scale_limit: float = 0.2
    rotate_limit_degrees: float = 10.0

    @classmethod
    def from_hyperparameters(
        cls, hyperparameters: Hyperparameters, image_size: int, mean: Sequence[float]
    ) -> "AugmentationPolicy":
        """The policy of one configuration.

        Args:
            hyperparameters: gives the three probabilities.
            image_size: side of the images in pixels; the hole is half of it (16 for 32).
            mean: the data set's mean colour, RGB, 0 to 1.
        """
        # The original code passed the 0-1 means for 0-255 images, which cuts holes that are black.
        red, green, blue = (255.0 * channel for channel in mean)
        return cls(
            flip_p=hyperparameters.flip_p,
            shift_scale_rotate_p=hyperparameters.shift_scale_rotate_p,
            coarse_dropout_p=hyperparameters.coarse_dropout_p,
            hole_px=image_size // 2,
            hole_fill=(red, green, blue),
        )


class Augmenter:
    """Applies a policy to batches of uint8 images; each image has its own draws.

    Args:
        policy: what is done.
        image_size: side of the images in pixels.
    """

    def __init__(self, policy: AugmentationPolicy, image_size: int) -> None:
        self.policy = policy
        self._compose = A.Compose(geometric_transforms(policy, image_size))

    def reseed(self, seed: int) -> None:
        """Start the stream of draws that belongs to `seed`, in [0, 2^63).

        `Compose.set_random_seed` would hand the same seed to every transform, so that the images that are
        flipped are the images that are turned; each transform gets a seed of its own here.
        """
        seeds = np.random.SeedSequence(seed).generate_state(len(self._compose.transforms), np.uint64)
        for transform, own_seed in zip(self._compose.transforms, seeds, strict=True):
            transform.set_random_seed(int(own_seed))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Augment a batch.

        Args:
            images: (N, H, W, 3) uint8; not changed.

        Returns:
            Same shape and dtype.
        """
        augmented = np.empty_like(images)
        for i, image in enumerate(images):
            augmented[i] = self._compose(image=image)["image"]
        return augmented


def geometric_transforms(policy: AugmentationPolicy, image_size: int) -> list[A.BasicTransform]:
    """The transforms on 0-255 images; normalisation and tensor follow for the whole batch at once.

    `Affine` is what albumentations 2 names in place of its deprecated `ShiftScaleRotate`; with one scale
    for both axes and mirrored borders it does what that class did when this policy was written for it.
    """
    shift = (-policy.shift_limit, policy.shift_limit)
    return [
        A.HorizontalFlip(p=policy.flip_p),
        A.Affine(
            translate_percent={"x": shift, "y": shift},
            scale=(1 - policy.scale_limit, 1 + policy.scale_limit),
            keep_ratio=True,
            rotate=(-policy.rotate_limit_degrees, policy.rotate_limit_degrees),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_REFLECT_101,
            p=policy.shift_scale_rotate_p,
        ),
        A.CoarseDropout(
            num_holes_range=(1, 1),
            hole_height_range=(policy.hole_px, policy.hole_px),
            hole_width_range=(policy.hole_px, policy.hole_px),
            fill=policy.hole_fill,
            p=policy.coarse_dropout_p,
        ),
        A.CenterCrop(image_size, image_size),
    ]
