from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch
from albumentations.augmentations.geometric import functional as fgeometric
from numpy.typing import NDArray
from scipy import stats
from torch import Generator, Tensor

from trainable.augmentation import batched as batched_augmentation
from trainable.augmentation.batched import (
    BatchedAugmenter,
    Draws,
    cut_hole,
    draw,
    flip,
    hole_colour,
    shift_scale_rotate,
)
from trainable.augmentation.policy import AugmentationPolicy, Augmenter, geometric_transforms

SIZES = (18, 33)
# OpenCV 5 interpolates in float32, as torch does: only what is all but halfway between two levels is rounded
# otherwise. OpenCV 4 rounds coordinates to 1/32 px: at most 1/64 px off along both axes, on each of which
# neighbouring pixels differ by up to 255, and 1 more by rounding.
IS_OPENCV_5 = int(cv2.__version__.split(".")[0]) >= 5
MAX_DIFFERENCE = 1 if IS_OPENCV_5 else 2 * 255 / 64 + 1
MEAN_DIFFERENCE = 0.001 if IS_OPENCV_5 else 1


def policy(flip_p: float = 0.0, shift_scale_rotate_p: float = 0.0, coarse_dropout_p: float = 0.0) -> AugmentationPolicy:
    return AugmentationPolicy(
        flip_p=flip_p,
        shift_scale_rotate_p=shift_scale_rotate_p,
        coarse_dropout_p=coarse_dropout_p,
        hole_px=9,
        hole_fill=(125.3, 122.95, 113.9999999),
    )


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def noise(n_images: int, image_size: int = 32) -> Tensor:
    return torch.randint(0, 256, (n_images, image_size, image_size, 3), dtype=torch.uint8, generator=generator())


def smooth(n_images: int, image_size: int) -> Tensor:
    coarse = noise(n_images, 5).numpy()
    return torch.from_numpy(
        np.stack([cv2.resize(one, (image_size,) * 2, None, 0, 0, cv2.INTER_CUBIC) for one in coarse])
    )


def no_draws(n_images: int) -> Draws:
    """As if by a policy whose probabilities are 0."""
    return draw(policy(), n_images, 18, generator())


def affine_params(image_size: int, n_images: int, seed: int = 0) -> list[dict[str, NDArray[np.float64]]]:
    affine = geometric_transforms(policy(shift_scale_rotate_p=1.0), image_size)[1]
    affine.set_random_seed(seed)
    shape = {"shape": (image_size, image_size, 3)}
    return [affine.get_params_dependent_on_data(shape, {}) for _ in range(n_images)]


def hole_params(image_size: int, n_images: int, seed: int = 0) -> NDArray[np.int64]:
    """(N, 4): left, top, right, bottom, as albumentations draws them."""
    dropout = geometric_transforms(policy(coarse_dropout_p=1.0), image_size)[2]
    dropout.set_random_seed(seed)
    shape = {"shape": (image_size, image_size, 3)}
    return np.concatenate([dropout.get_params_dependent_on_data(shape, {})["holes"] for _ in range(n_images)])


def moves_of(params: list[dict[str, NDArray[np.float64]]], image_size: int) -> Draws:
    """Draws that say what albumentations' parameters say."""
    matrices = np.stack([one["matrix"] for one in params])
    centre = np.full(2, (image_size - 1) / 2)
    shifts = matrices[:, :2, 2] + matrices[:, :2, :2] @ centre - centre
    return replace(
        no_draws(len(params)),
        moved=torch.ones(len(params), dtype=torch.bool),
        shift_x_px=torch.tensor(shifts[:, 0], dtype=torch.float32),
        shift_y_px=torch.tensor(shifts[:, 1], dtype=torch.float32),
        scale=torch.tensor([one["scale"]["x"] for one in params], dtype=torch.float32),
        angle_degrees=torch.tensor([one["rotate"] for one in params], dtype=torch.float32),
    )


def by_albumentations(image: NDArray[np.uint8], policy: AugmentationPolicy, draws: Draws, i: int) -> NDArray[np.uint8]:
    """What albumentations' transforms, in its order, make of an image by the i-th of our draws."""
    transforms = geometric_transforms(policy, len(image))
    drawn = {field.name: getattr(draws, field.name)[i].item() for field in fields(draws)}
    centre = fgeometric.center(image.shape)
    shift = {"x": drawn["shift_x_px"], "y": drawn["shift_y_px"]}
    scale = {"x": drawn["scale"], "y": drawn["scale"]}
    matrix = fgeometric.create_affine_transformation_matrix(
        shift, {"x": 0, "y": 0}, scale, drawn["angle_degrees"], centre
    )
    left, top = drawn["hole_left_px"], drawn["hole_top_px"]
    holes = np.array([[left, top, left + policy.hole_px, top + policy.hole_px]])
    image = transforms[0].apply(image) if drawn["flipped"] else image
    image = transforms[1].apply(image, matrix=matrix, output_shape=image.shape[:2]) if drawn["moved"] else image
    return transforms[2].apply(image, holes=holes, seed=0) if drawn["cut"] else image


def assert_equal_but_for_rounding(found: Tensor, expected: NDArray[np.uint8]) -> None:
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= MAX_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


def test_a_large_turn_mirrors_more_than_one_border_as_albumentations_does() -> None:
    images = noise(12)
    draws = replace(
        draw(policy(shift_scale_rotate_p=1.0), 12, 32, generator()),
        scale=torch.linspace(0.2, 3, 12),
        angle_degrees=torch.linspace(-180, 180, 12),
    )
    expected = np.stack([by_albumentations(image, policy(), draws, i) for i, image in enumerate(images.numpy())])
    assert_equal_but_for_rounding(shift_scale_rotate(images, draws), expected)


@pytest.mark.parametrize("image_size", SIZES)
def test_an_augmenter_does_to_its_draws_what_albumentations_transforms_do_in_their_order(image_size: int) -> None:
    images, some = noise(200, image_size), policy(0.5, 0.5, 0.5)
    augmenter = BatchedAugmenter(some, image_size, "cpu")
    augmenter.reseed(5)
    draws = draw(some, 200, image_size, generator(5))
    expected = np.stack([by_albumentations(image, some, draws, i) for i, image in enumerate(images.numpy())])
    assert_equal_but_for_rounding(augmenter(images), expected)


@pytest.mark.parametrize("image_size", SIZES)
def test_moves_are_distributed_as_albumentations_are(image_size: int) -> None:
    theirs = moves_of(affine_params(image_size, 2000), image_size)
    ours = draw(policy(), 20_000, image_size, generator())
    assert 0.8 <= ours.scale.min() < 0.801
    assert 1.199 < ours.scale.max() <= 1.2
    assert -10 <= ours.angle_degrees.min() < -9.99
    assert 9.99 < ours.angle_degrees.max() <= 10
    assert stats.ks_2samp(ours.scale, theirs.scale).pvalue > 0.01
    assert stats.ks_2samp(ours.angle_degrees, theirs.angle_degrees).pvalue > 0.01

    for axis in ("shift_x_px", "shift_y_px"):
        assert_same_distribution(getattr(ours, axis), getattr(theirs, axis).round())


@pytest.mark.parametrize("image_size", [9, *SIZES])
def test_holes_lie_within_the_image_distributed_as_albumentations_do(image_size: int) -> None:
    theirs = torch.from_numpy(hole_params(image_size, 2000))
    ours = draw(policy(), 20_000, image_size, generator())
    assert_same_distribution(ours.hole_left_px, theirs[:, 0])
    assert_same_distribution(ours.hole_top_px, theirs[:, 1])


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Of whole numbers: the same ones occur, equally often but for chance."""
    values = np.unique(theirs)
    np.testing.assert_array_equal(np.unique(ours), values)
    counts = [[(drawn == value).sum().item() for value in values] for drawn in (ours, theirs)]
    assert stats.chi2_contingency(counts).pvalue > 0.01


def test_each_transform_happens_as_often_as_its_probability_says() -> None:
    draws = draw(policy(0.5, 0.2, 0.7), 100_000, 32, generator())
    rates = [flags.float().mean().item() for flags in (draws.flipped, draws.moved, draws.cut)]
    assert rates == pytest.approx([0.5, 0.2, 0.7], abs=0.006)


def test_draws_say_nothing_of_each_other() -> None:
    draws = draw(policy(0.5, 0.5, 0.5), 20_000, 32, generator())
    table = np.stack([getattr(draws, field.name) for field in fields(draws)]).astype(float)
    correlation = np.corrcoef(table) - np.eye(len(table))
    # Five standard errors of a correlation that is 0.
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_many_augmentations_of_one_image_have_albumentations_mean_and_spread() -> None:
    n, some = 1500, policy(0.3, 0.6, 0.4)
    image = smooth(1, 32)
    theirs = Augmenter(some, 32)
    theirs.reseed(1)
    ours = BatchedAugmenter(some, 32, "cpu")
    ours.reseed(1)
    by_us = ours(image.expand(n, -1, -1, -1)).numpy().astype(float)
    by_them = theirs(image.expand(n, -1, -1, -1).numpy()).astype(float)
    spread = by_them.std(0)
    # A difference of two means of n has a standard error of sqrt(2 / n) spreads, and its mean size is 0.8 of that.
    assert np.mean(np.abs(by_us.mean(0) - by_them.mean(0)) / spread) < 1.6 * np.sqrt(2 / n)
    assert np.mean(np.abs(by_us.std(0) / spread - 1)) < 0.045


def test_a_seed_fixes_all_draws() -> None:
    images, augmenter = noise(40), BatchedAugmenter(policy(0.5, 0.5, 0.5), 32, "cpu")
    augmenter.reseed(2**62 + 7)
    first, second = augmenter(images), augmenter(images)
    augmenter.reseed(2**62 + 7)
    assert torch.equal(augmenter(images), first)
    augmenter.reseed(2**62 + 8)
    assert not torch.equal(augmenter(images), first)
    assert not torch.equal(second, first)


def test_images_are_augmented_in_parts_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    images, some = noise(100), policy(0.5, 0.5, 0.5)
    monkeypatch.setattr(batched_augmentation, "CHUNK_PX_ON_CPU", 1000 * 32 * 32)
    at_once = BatchedAugmenter(some, 32, "cpu")
    monkeypatch.setattr(batched_augmentation, "CHUNK_PX_ON_CPU", 7 * 32 * 32)
    in_parts = BatchedAugmenter(some, 32, "cpu")
    at_once.reseed(0)
    in_parts.reseed(0)
    assert torch.equal(in_parts(images), at_once(images))


def test_the_input_is_left_as_it_was_and_changes_with_probability_zero_never() -> None:
    images = noise(40)
    before = images.clone()
    BatchedAugmenter(policy(1.0, 1.0, 1.0), 32, "cpu")(images).zero_()
    assert torch.equal(BatchedAugmenter(policy(), 32, "cpu")(images), before)
    assert torch.equal(images, before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_makes_the_same_of_the_same_draws_and_never_waits() -> None:
    images, some = noise(500), policy(0.5, 0.5, 0.5)
    draws = draw(some, 500, 32, generator())
    on_gpu = Draws(**{field.name: getattr(draws, field.name).cuda() for field in fields(draws)})
    augmenter, images_on_gpu, colour = BatchedAugmenter(some, 32, "cuda"), images.cuda(), hole_colour(some, "cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = cut_hole(shift_scale_rotate(flip(images_on_gpu, on_gpu), on_gpu), on_gpu, 9, colour)
        augmenter.reseed(0)
        augmenter(images_on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = cut_hole(shift_scale_rotate(flip(images, draws), draws), draws, 9, hole_colour(some, "cpu"))
    difference = (found.cpu().int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() < 0.001
