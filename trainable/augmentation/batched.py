"""Augments whole batches on the images' own device, with the same policy as the albumentations version.

For the same draws, `flip` and `cut_hole` give exactly the pixels of albumentations; `shift_scale_rotate` differs by
rounding only. No shape depends on a draw and no value is copied to the host, so calls never wait for a GPU.
"""

from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from trainable.augmentation.policy import AugmentationPolicy

# Pixels that are augmented at once. Bounds memory: about 45 bytes per pixel, 190 MB for 4,096 images of 32 × 32.
CHUNK_PX = 4096 * 32 * 32
# A chunk that fits into a core's cache is faster: 35,000 images/s instead of 23,000 on an EPYC core.
CHUNK_PX_ON_CPU = 64 * 32 * 32


@dataclass(frozen=True, slots=True)
class Draws:
    """Random parameters of N images. All tensors have the shape (N,) and are on one device.

    Attributes:
        flipped: bool; whether the image is mirrored left to right.
        moved: bool; whether the next four attributes are applied to the image.
        shift_x_px, shift_y_px: float32, whole numbers; shift to the right and down.
        scale: float32; above 1 the content grows.
        angle_degrees: float32; counter-clockwise rotation about the image's centre.
        cut: bool; whether the image gets a hole at the next two attributes.
        hole_left_px, hole_top_px: int64; the hole's first column and row.
    """

    flipped: Tensor
    moved: Tensor
    shift_x_px: Tensor
    shift_y_px: Tensor
    scale: Tensor
    angle_degrees: Tensor
    cut: Tensor
    hole_left_px: Tensor
    hole_top_px: Tensor

    def __getitem__(self, part: slice) -> "Draws":
        """Draws of the images in the slice `part`."""
        return Draws(**{field.name: getattr(self, field.name)[part] for field in fields(self)})


class BatchedAugmenter:
    """Applies a policy to batches of uint8 images on one device; each image has its own draws.

    Args:
        image_size: side of the images in pixels; at least 2 and `policy.hole_px`.
        device: device of the images and of the draws.
    """

    def __init__(self, policy: AugmentationPolicy, image_size: int, device: torch.device | str) -> None:
        self.policy = policy
        self.image_size = image_size
        self._generator = Generator(device)
        self._hole_colour = hole_colour(policy, device)
        chunk_px = CHUNK_PX_ON_CPU if self._generator.device.type == "cpu" else CHUNK_PX
        self._chunk_images = max(1, chunk_px // image_size**2)

    def reseed(self, seed: int) -> None:
        """Restart the stream of draws from `seed`, in [0, 2^63).

        A CPU and a GPU give different draws for the same seed. A CPU uses only the lowest 32 bits of the seed.
        """
        self._generator.manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Augment a batch or a whole data set; memory for intermediate results is bounded by the chunk size.

        `images` are (N, H, W, 3) uint8 with H = W = `image_size`, on the augmenter's device; they are not
        changed. Returns the same shape, dtype and device.
        """
        draws = draw(self.policy, len(images), self.image_size, self._generator)
        augmented = torch.empty_like(images)
        for start in range(0, len(images), self._chunk_images):
            part = slice(start, start + self._chunk_images)
            augmented[part] = self._apply(images[part], draws[part])
        return augmented

    def _apply(self, images: Tensor, draws: Draws) -> Tensor:
        # A transform with probability 0 is skipped. The draws are the same either way.
        if self.policy.flip_p > 0:
            images = flip(images, draws)
        if self.policy.shift_scale_rotate_p > 0:
            images = shift_scale_rotate(images, draws)
        if self.policy.coarse_dropout_p > 0:
            images = cut_hole(images, draws, self.policy.hole_px, self._hole_colour)
        return images


def draw(policy: AugmentationPolicy, n_images: int, image_size: int, generator: Generator) -> Draws:
    """Draw independent random parameters for `n_images` images, with albumentations' distributions.

    `image_size` is in pixels, and at least `policy.hole_px`. The result is on the device of `generator`.
    """
    uniform = torch.rand((len(fields(Draws)), n_images), generator=generator, device=generator.device)
    flip_u, move_u, x_u, y_u, scale_u, angle_u, cut_u, left_u, top_u = uniform.unbind()
    shift_limit_px = policy.shift_limit * image_size
    n_hole_places = image_size - policy.hole_px + 1
    return Draws(
        flipped=flip_u < policy.flip_p,
        moved=move_u < policy.shift_scale_rotate_p,
        # albumentations truncates shifts to whole pixels: with a limit of 2 px, half of the shifts are 0, none is 2.
        shift_x_px=_spread(x_u, shift_limit_px).trunc(),
        shift_y_px=_spread(y_u, shift_limit_px).trunc(),
        scale=1 + _spread(scale_u, policy.scale_limit),
        angle_degrees=_spread(angle_u, policy.rotate_limit_degrees),
        cut=cut_u < policy.coarse_dropout_p,
        hole_left_px=(left_u * n_hole_places).long(),
        hole_top_px=(top_u * n_hole_places).long(),
    )


def flip(images: Tensor, draws: Draws) -> Tensor:
    """Mirror the images, (N, H, W, 3) uint8, with `draws.flipped` left to right."""
    return torch.where(draws.flipped[:, None, None, None], images.flip(2), images)


def shift_scale_rotate(images: Tensor, draws: Draws) -> Tensor:
    """Scale and rotate the images with `draws.moved` about their centres, then shift them; keep the others unchanged.

    Interpolation is bilinear. Beyond its border an image is mirrored about its outermost pixels (`reflect_101`).

    Args:
        images: (N, S, S, 3) uint8, S at least 2.
        draws: draws of N images, on the device of `images`.
    """
    channels_first = images.permute(0, 3, 1, 2).float()
    grid = _sampling_grid(draws, images.shape[1])
    # With align_corners, ±1 are the centres of the outermost pixels, and "reflection" mirrors about these centres.
    sampled = F.grid_sample(channels_first, grid, mode="bilinear", padding_mode="reflection", align_corners=True)
    rounded = sampled.round_().to(torch.uint8).permute(0, 2, 3, 1)
    return torch.where(draws.moved[:, None, None, None], rounded, images)


def cut_hole(images: Tensor, draws: Draws, hole_px: int, colour: Tensor) -> Tensor:
    """Fill one square with `colour` in each image with `draws.cut`.

    Args:
        images: (N, H, W, 3) uint8.
        draws: draws of N images, on the device of `images`.
        hole_px: side of the hole, in pixels.
        colour: (3,) uint8, on the device of `images`; see `hole_colour`.
    """
    n_rows, n_columns = images.shape[1:3]
    in_rows = _from_start(draws.hole_top_px, hole_px, n_rows) & draws.cut[:, None]
    in_columns = _from_start(draws.hole_left_px, hole_px, n_columns)
    in_hole = in_rows[:, :, None] & in_columns[:, None, :]
    return torch.where(in_hole[..., None], colour, images)


def hole_colour(policy: AugmentationPolicy, device: torch.device | str) -> Tensor:
    """The policy's hole colour as (3,) uint8, truncated to whole numbers as albumentations does."""
    return torch.tensor(policy.hole_fill, dtype=torch.float64).to(torch.uint8).to(device)


def _sampling_grid(draws: Draws, image_size: int) -> Tensor:
    """(N, S, S, 2) float32: source position (x, y) of each pixel; ±1 are the centres of the outermost pixels.

    The inverse of albumentations' matrix, which scales, rotates and then shifts about the centre (S - 1) / 2.
    """
    # Without a matrix product (F.affine_grid), which autocast or TF32 would round to 8 or 11 bits.
    to_centre_px = (image_size - 1) / 2
    across = torch.linspace(-1, 1, image_size, device=draws.scale.device)
    x = (across - draws.shift_x_px[:, None] / to_centre_px)[:, None, :]
    y = (across - draws.shift_y_px[:, None] / to_centre_px)[:, :, None]
    angle = draws.angle_degrees.deg2rad()
    cosine = (angle.cos() / draws.scale)[:, None, None]
    sine = (angle.sin() / draws.scale)[:, None, None]
    return torch.stack((cosine * x - sine * y, sine * x + cosine * y), dim=-1)


def _spread(uniform: Tensor, limit: float) -> Tensor:
    """Map [0, 1) linearly to [-limit, limit)."""
    return (2 * uniform - 1) * limit


def _from_start(start: Tensor, length: int, n: int) -> Tensor:
    """(N, n) bool: whether each position 0 to n - 1 is in [start, start + length); `start` is (N,) int64."""
    after_start = torch.arange(n, device=start.device) - start[:, None]
    return (after_start >= 0) & (after_start < length)
