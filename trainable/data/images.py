"""Image files to arrays, the same way for training folders and for prediction. Needs Pillow and numpy only."""

import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spaces.errors import InputError
from spaces.plain_files import open_plain

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
# Names lie: these are often found under the endings above. Of the other formats that Pillow would try, one is a
# program to be run (EPS, by Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# Pixels of the largest image that is decoded, and of all images that are decoded at the same time: 4 to 16 bytes each.
# Pillow's own limit, the same, is switched off: it would also warn of every image of half that size.
MAX_PIXELS = 178_956_970
Image.MAX_IMAGE_PIXELS = None
# Larger than any allocation that glibc keeps for reuse in each thread (32 MiB): large images go back to the system.
Image.core.set_block_size(64 * 2**20)  # type: ignore[attr-defined]
# What a decoder noticed of damaged metadata is of no use to who trains; what costs the pixels is an error.
warnings.filterwarnings("ignore", module=r"PIL\b")


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
        with (
            open_plain(path, follow_links=True) as file,
            Image.open(file, formats=FORMATS) as image,
            _DECODING.reserved(_n_pixels(image)),
        ):
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


def _n_pixels(image: Image.Image) -> int:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"has {width:,} x {height:,} pixels, but may have at most {MAX_PIXELS:,} in all: make it smaller"
        )
    return width * height


class _PixelBudget:
    """Lets threads decode images side by side only while these have at most `n_pixels` together."""

    def __init__(self, n_pixels: int) -> None:
        self._n_free = n_pixels
        self._freed = threading.Condition()

    @contextmanager
    def reserved(self, n_pixels: int) -> Iterator[None]:
        """Wait until `n_pixels` are free, and keep them for the block."""
        with self._freed:
            self._freed.wait_for(lambda: n_pixels <= self._n_free)
            self._n_free -= n_pixels
        try:
            yield
        finally:
            with self._freed:
                self._n_free += n_pixels
                self._freed.notify_all()


_DECODING = _PixelBudget(MAX_PIXELS)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    # Pillow writes the whole EXIF block anew when it turns an image; a damaged block must not cost the pixels.
    try:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return image if is_upright else ImageOps.exif_transpose(image)
    except (struct.error, SyntaxError, TypeError, KeyError):
        return image


def to_square(image: Image.Image, image_size: int) -> NDArray[np.uint8]:
    """RGB, stretched to `image_size` × `image_size` with antialiased bilinear interpolation.

    The whole image is kept: one that is not square changes its proportions.
    """
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion clips instead of scaling
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns of what it drops: how transparent each pixel is
    if image.mode != "RGB":  # a conversion to itself is a copy
        image = image.convert("RGB")
    if image.size != (image_size, image_size):
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(image, dtype=np.uint8)
