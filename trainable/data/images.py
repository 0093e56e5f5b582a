"""Decodes image files, in the same way for training and for prediction. Needs Pillow and numpy only."""

import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spaces.errors import InputError
from spaces.plain_files import open_plain

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
# Accepted formats. Files with the suffixes above often have another of these formats. The other formats of Pillow
# include EPS, which would run a program (Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Most pixels of one image; a pixel takes 4 to 16 bytes. Pillow has the same limit, but would also warn about every
# image of half that size, so its limit is switched off.
MAX_PIXELS = 178_956_970
Image.MAX_IMAGE_PIXELS = None
# Blocks above 32 MiB, which glibc returns to the system instead of keeping them in each thread.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]
# Ignore warnings about damaged metadata. Damage to the pixels raises an error.
warnings.filterwarnings("ignore", module=r"PIL\b")

# What `read_image` does, for programs without this one.
RESIZING_RULE = (
    "after the EXIF orientation and the conversion to RGB, stretched to image_size x image_size by Pillow's BILINEAR "
    "filter, which is antialiased; not cropped"
)


class UnreadableImageError(ValueError):
    """An image file cannot be decoded. The message says why, without the path."""


def read_image(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: image file. Grey, palette, CMYK and 16-bit images become RGB; the EXIF orientation is applied.
        image_size: side of the result in pixels.

    Returns:
        (image_size, image_size, 3) uint8 RGB.

    Raises:
        UnreadableImageError: the file is not an image, is truncated, or cannot be opened.
    """
    try:
        with open_plain(path, follow_links=True) as file, Image.open(file, formats=FORMATS) as image:
            _must_be_small_enough(image)
            return to_square(_upright(image), image_size)
    except UnreadableImageError:
        raise
    except InputError:
        raise UnreadableImageError("is not a file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("is not an image") from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be decoded ({error.strerror or error})") from None
    except (SyntaxError, ValueError, OverflowError, MemoryError, struct.error) as error:
        raise UnreadableImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from None


def _must_be_small_enough(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"has {width:,} x {height:,} pixels, but may have at most {MAX_PIXELS:,} in all: make it smaller"
        )


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    # Pillow rewrites the EXIF block when it rotates an image. If the block is damaged, keep the image unrotated.
    try:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, TypeError, KeyError):
        return image


def to_square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """Convert to RGB and resize to `image_size` × `image_size` with antialiased bilinear interpolation.

    The image is not cropped: if it is not square, its proportions change.
    """
    if image.mode.startswith("I"):  # 16 bits per pixel; Pillow's conversion would clip instead of scale
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # without this step, Pillow warns about the dropped transparency
    if image.mode != "RGB":  # a conversion from RGB to RGB would copy the image
        image = image.convert("RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)
