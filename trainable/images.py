"""Image files to arrays, the same way for training folders and for prediction. Needs Pillow and numpy only."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from spaces.errors import InputError
from spaces.plain_files import open_plain

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
# Names lie: these are often found under the endings above. Of the other formats that Pillow would try, one is a
# program to be run (EPS, by Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded; the message says why, without the path."""


def read_image(path: Path, image_size: int) -> NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: PNG or JPEG; grey, palette, CMYK and 16-bit images become RGB, a camera's rotation is applied.
        image_size: side in pixels.

    Returns:
        (image_size, image_size, 3) uint8 RGB.

    Raises:
        UnreadableImageError: it is not an image, is truncated, or cannot be opened.
    """
    try:
        with open_plain(path, follow_links=True) as file, Image.open(file, formats=FORMATS) as image:
            return to_square(_upright(image), image_size)
    except InputError:
        raise UnreadableImageError("is not a file") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("is not an image") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"is too large to decode ({error})") from None
    except OSError as error:
        raise UnreadableImageError(f"cannot be decoded ({error.strerror or error})") from None
    except (SyntaxError, ValueError, OverflowError, MemoryError, struct.error) as error:
        raise UnreadableImageError(f"cannot be decoded ({error})") from None


def _upright(image: Image.Image) -> Image.Image:
    # Pillow writes the whole EXIF block anew when it turns an image; a damaged block must not cost the pixels.
    try:
        return ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, TypeError, KeyError):
        return image


def to_square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """RGB, stretched to `image_size` × `image_size` with antialiased bilinear interpolation.

    The whole image is kept: one that is not square changes its proportions.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns of what it drops: how transparent each pixel is
    image = image.convert("RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)
