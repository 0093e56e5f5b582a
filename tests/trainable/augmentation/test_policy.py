import albumentations as A
import cv2
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from numpy.typing import NDArray

from spaces import Hyperparameters
from trainable.augmentation.policy import AugmentationPolicy, Augmenter, geometric_transforms
from trainable.network.model import Normalise

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2463, 0.2428, 0.2607)


def policy(flip_p: float = 0.0, shift_scale_rotate_p: float = 0.0, coarse_dropout_p: float = 0.0) -> AugmentationPolicy:
    hyperparameters = Hyperparameters(
        flip_p=flip_p, shift_scale_rotate_p=shift_scale_rotate_p, coarse_dropout_p=coarse_dropout_p
    )
    return AugmentationPolicy.from_hyperparameters(hyperparameters, 32, MEAN)


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)


def test_the_transforms_are_the_specified_ones_in_order() -> None:
    flip, affine, hole, crop = geometric_transforms(policy(0.5, 0.2, 0.3), 32)
    assert isinstance(flip, A.HorizontalFlip)
    assert flip.p == 0.5
    assert isinstance(affine, A.Affine)
    assert affine.p == 0.2
    assert affine.scale == {"x": (0.8, 1.2), "y": (0.8, 1.2)}
    assert affine.translate_percent == {"x": (-0.0625, 0.0625), "y": (-0.0625, 0.0625)}
    assert affine.rotate == (-10, 10)
    assert affine.keep_ratio
    assert affine.border_mode == cv2.BORDER_REFLECT_101
    assert isinstance(hole, A.CoarseDropout)
    assert hole.p == 0.3
    assert hole.num_holes_range == (1, 1)
    assert hole.hole_height_range == hole.hole_width_range == (16, 16)
    assert isinstance(crop, A.CenterCrop)
    assert (crop.height, crop.width) == (32, 32)


def test_normalising_a_batch_equals_albumentations_image_by_image(images: NDArray[np.uint8]) -> None:
    reference = A.Compose([A.Normalize(MEAN, STD, max_pixel_value=255.0), ToTensorV2()])
    expected = torch.stack([reference(image=image)["image"] for image in images])
    found = Normalise(MEAN, STD)(torch.from_numpy(images))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_the_hole_has_the_mean_colour_on_the_scale_of_the_image() -> None:
    white = np.full((8, 32, 32, 3), 255, dtype=np.uint8)
    augmented = Augmenter(policy(coarse_dropout_p=1.0), 32)(white)
    holes = augmented[(augmented != 255).any(-1)]
    assert len(holes) == 8 * 16 * 16
    np.testing.assert_allclose(holes, np.broadcast_to(np.multiply(MEAN, 255), holes.shape), atol=1)


def test_an_argument_that_albumentations_2_no_longer_has_is_an_error_here() -> None:
    # albumentations itself only warns, and goes on without the argument; see filterwarnings in pyproject.toml.
    with pytest.raises(UserWarning, match="not valid for transform"):
        A.CoarseDropout(max_holes=1)


def test_a_seed_fixes_all_draws(images: NDArray[np.uint8]) -> None:
    augmenter = Augmenter(policy(0.5, 0.5, 0.5), 32)
    augmenter.reseed(7)
    first = augmenter(images)
    second = augmenter(images)
    augmenter.reseed(7)
    np.testing.assert_array_equal(augmenter(images), first)
    assert (first != second).any()


def test_whether_an_image_is_flipped_says_nothing_of_its_hole() -> None:
    # albumentations gives every transform of a Compose the same seed; see Augmenter.reseed.
    halves = np.zeros((2000, 32, 32, 3), dtype=np.uint8)
    halves[:, :, 16:] = 255
    augmenter = Augmenter(policy(flip_p=0.5, coarse_dropout_p=0.5), 32)
    augmenter.reseed(0)
    augmented = augmenter(halves)
    has_hole = ((augmented > 0) & (augmented < 255)).any((1, 2, 3))
    bright_left = (augmented[:, :, :16] == 255).sum((1, 2, 3)) > (augmented[:, :, 16:] == 255).sum((1, 2, 3))
    assert abs(has_hole.mean() - 0.5) < 0.05
    assert abs(bright_left.mean() - 0.5) < 0.05
    assert abs(np.corrcoef(has_hole, bright_left)[0, 1]) < 0.07


def test_the_input_is_left_as_it_was_and_each_flag_does_its_own_thing(images: NDArray[np.uint8]) -> None:
    before = images.copy()
    images.flags.writeable = False
    Augmenter(policy(1.0, 1.0, 1.0), 32)(images)
    np.testing.assert_array_equal(Augmenter(policy(), 32)(images), before)
    np.testing.assert_array_equal(Augmenter(policy(flip_p=1.0), 32)(images), before[:, :, ::-1])
