"""Draws a grid of augmented images for visual inspection: each transform alone, and the whole policy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from spaces import Hyperparameters
from trainable.augmentation.policy import AugmentationPolicy, Augmenter
from trainable.data.cache import DecodedSet
from trainable.files import replacing

N_IMAGES = 6
N_DRAWS = 4
# Side of a grid's cell; smaller images are enlarged by a whole number, without smoothing.
CELL_PX = 96
LABEL_PX = 13
GAP_PX = 6


def sample_images(decoded: DecodedSet) -> NDArray[np.uint8]:
    """The first image of each of up to `N_IMAGES` classes: (N, H, W, 3) uint8."""
    _, first = np.unique(decoded.labels, return_index=True)
    return decoded.images[first[:N_IMAGES]]


def augmentation_samples(
    images: NDArray[np.uint8], hyperparameters: Hyperparameters, mean: Sequence[float], seed: int = 0
) -> dict[str, NDArray[np.uint8]]:
    """Columns of a grid: the originals, each transform alone with probability 1, several draws of the whole policy.

    Args:
        images: (N, H, W, 3) uint8, square.
        hyperparameters: source of the three probabilities.
        mean: the data set's mean colour, RGB, 0 to 1.
        seed: seed of the draws.

    Returns:
        (N, H, W, 3) uint8 images by the label of their column.
    """
    size = int(images.shape[1])
    policy = AugmentationPolicy.from_hyperparameters(hyperparameters, size, mean)
    never = replace(policy, flip_p=0.0, shift_scale_rotate_p=0.0, coarse_dropout_p=0.0)
    treatments = {
        "flip": replace(never, flip_p=1.0),
        "shift, scale, turn": replace(never, shift_scale_rotate_p=1.0),
        "coarse dropout": replace(never, coarse_dropout_p=1.0),
        **{f"as trained, {draw}": policy for draw in range(1, N_DRAWS + 1)},
    }
    columns = {"original": images}
    for i, (label, treatment) in enumerate(treatments.items()):
        augmenter = Augmenter(treatment, size)
        augmenter.reseed(seed + i)
        columns[label] = augmenter(images)
    return columns


def draw_grid(path: Path, columns: Mapping[str, NDArray[np.uint8]]) -> None:
    """Write a PNG with one row per image and one labelled column per treatment."""
    cells = [[_cell(image) for image in images] for images in columns.values()]
    cell_px = cells[0][0].width
    font = ImageFont.load_default(LABEL_PX)
    widths = [max(cell_px, round(font.getlength(label))) for label in columns]
    top = LABEL_PX + 2 * GAP_PX
    size = (sum(widths) + GAP_PX * (len(columns) + 1), top + len(cells[0]) * (cell_px + GAP_PX))
    grid = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(grid)
    left = GAP_PX
    for label, pictures, width in zip(columns, cells, widths, strict=True):
        pen.text((left, GAP_PX), label, fill="black", font=font)
        for row, picture in enumerate(pictures):
            grid.paste(picture, (left, top + row * (cell_px + GAP_PX)))
        left += width + GAP_PX
    with replacing(path) as temporary:
        grid.save(temporary, format="PNG")


def _cell(image: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(image)
    picture.thumbnail((CELL_PX, CELL_PX))
    return ImageOps.scale(picture, CELL_PX // picture.width, Image.Resampling.NEAREST)
