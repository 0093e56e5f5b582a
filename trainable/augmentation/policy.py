"""The augmentation policy, and an augmenter that applies it with albumentations 2.0."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

# By default, albumentations looks for a newer version on the network when it is imported.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray

from spaces import Hyperparameters

# albumentations runs inside the training process, which already uses one thread per core.
cv2.setNumThreads(0)


@dataclass(frozen=True, slots=True)
class AugmentationPolicy:
    """Probabilities and limits of the transforms, which are applied in this order: flip, affine, hole.

    Attributes:
        flip_p: probability of a horizontal flip.
        shift_scale_rotate_p: probability of one shift, scaling and rotation together.
        shift_limit: largest shift along each axis, as a fraction of the side.
        scale_limit: largest change of scale, as a fraction; both axes share the scale.
        rotate_limit_degrees: largest rotation in either direction.
        coarse_dropout_p: probability of one square hole.
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
            hyperparameters: source of the three probabilities.
            image_size: side of the images in pixels; the hole's side is half of it (16 for 32).
            mean: the data set's mean colour, RGB, 0 to 1.
        """
        # The original code passed means of 0 to 1 for images of 0 to 255, so that its holes were black.
        red, green, blue = (255.0 * channel for channel in mean)
        return cls(
            flip_p=hyperparameters.flip_p,
            shift_scale_rotate_p=hyperparameters.shift_scale_rotate_p,
            coarse_dropout_p=hyperparameters.coarse_dropout_p,
            hole_px=image_size // 2,
            hole_fill=(red, green, blue),
        )


class Augmenter:
    """Applies a policy to batches of uint8 images, `image_size` pixels a side; each image has its own draws."""

    def __init__(self, policy: AugmentationPolicy, image_size: int) -> None:
        self.policy = policy
        self._compose = A.Compose(geometric_transforms(policy, image_size))

    def reseed(self, seed: int) -> None:
        """Restart the stream of draws from `seed`, in [0, 2^63).

        Each transform gets its own seed. `Compose.set_random_seed` would give all transforms the same seed, and
        equal draws: with equal probabilities, exactly the flipped images would be rotated.
        """
        seeds = np.random.SeedSequence(seed).generate_state(len(self._compose.transforms), np.uint64)
        for transform, own_seed in zip(self._compose.transforms, seeds, strict=True):
            transform.set_random_seed(int(own_seed))

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Augment (N, H, W, 3) uint8 images, which are not changed. Returns the same shape and dtype."""
        augmented = np.empty_like(images)
        for i, image in enumerate(images):
            augmented[i] = self._compose(image=image)["image"]
        return augmented


def geometric_transforms(policy: AugmentationPolicy, image_size: int) -> list[A.BasicTransform]:
    """The policy's transforms for uint8 images.

    `Affine` replaces `ShiftScaleRotate`, which albumentations 2 deprecates. With one scale for both axes and
    mirrored borders it does the same.
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
