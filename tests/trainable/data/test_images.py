"""Decoding of single images: kinds that are fine, damage, and limits."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainable.data import images
from trainable.data.images import UnreadableImageError, read_image


def png(pixels: np.ndarray, bits: int, colour_type: int) -> bytes:
    """A PNG file, also of kinds that Pillow does not write.

    Args:
        pixels: (H, W, channels) of `bits` bits.
        bits: 8 or 16.
        colour_type: PNG's own number: 0 grey, 2 RGB, 4 grey with alpha, 6 RGB with alpha.
    """

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2" if bits == 16 else "u1")
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("bits", "colour_type", "pixel", "expected"),
    [
        (8, 0, [100], (100, 100, 100)),
        (16, 0, [100 * 257], (100, 100, 100)),
        (16, 2, [200 * 257, 100 * 257, 50 * 257], (200, 100, 50)),
        (16, 4, [100 * 257, 30 * 257], (100, 100, 100)),
        (16, 6, [200 * 257, 100 * 257, 50 * 257, 30 * 257], (200, 100, 50)),
    ],
)
def test_png_images_of_16_bits_are_scaled(
    bits: int, colour_type: int, pixel: list[int], expected: tuple[int, ...], tmp_path: Path
) -> None:
    (tmp_path / "image.png").write_bytes(png(np.full((20, 20, len(pixel)), pixel), bits, colour_type))
    np.testing.assert_allclose(read_image(tmp_path / "image.png", 17)[8, 8], expected, atol=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("mode", "colour", "name", "expected"),
    [
        ("L", 100, "image.png", (100, 100, 100)),
        ("L", 77, "image.jpg", (77, 77, 77)),
        ("RGBA", (10, 20, 30, 128), "image.png", (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), "image.jpg", (254, 0, 0)),
        ("I;16", 100 * 256, "image.png", (100, 100, 100)),
        ("1", 1, "image.png", (255, 255, 255)),
    ],
)
def test_images_of_other_kinds_become_rgb(
    mode: str, colour: object, name: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    Image.new(mode, (30, 20), colour).save(tmp_path / name)  # type: ignore[arg-type]
    image = read_image(tmp_path / name, 17)
    assert (image.shape, image.dtype) == ((17, 17, 3), np.uint8)
    np.testing.assert_allclose(image[8, 8], expected, atol=2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_a_palette_gives_its_colours_whether_transparent_or_not(transparency: object, tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([255, 0, 0, 10, 200, 30, 0, 0, 255])
    image.save(tmp_path / "image.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 17)[8, 8], (10, 200, 30))


def test_a_camera_s_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 20))
    image.paste((255, 255, 255), (0, 0, 20, 10))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "image.png", exif=exif)
    read = read_image(tmp_path / "image.png", 20)
    assert read[2].max() == 0
    assert read[17].min() == 255


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_exif_block_does_not_cost_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker"
    exif[0x011A] = 72.0
    path = tmp_path / "image.jpg"
    Image.new("RGB", (20, 20), (200, 10, 10)).save(path, exif=exif)
    content = bytearray(path.read_bytes())
    start = content.index(b"Exif")
    end = start - 2 + int.from_bytes(content[start - 2 : start], "big")
    for offset in range(start + 6, end):
        damaged = bytearray(content)
        damaged[offset] ^= 0xFF
        path.write_bytes(bytes(damaged))
        assert read_image(path, 17)[8, 8, 0] > 150


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" + b"\x00" * 30, b"GIF89a"])
def test_what_is_not_an_image_is_an_error_of_its_own(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(content)
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "image.png", 17)


def test_an_image_over_the_largest_size_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    Image.new("L", (50, 20)).save(tmp_path / "fits.png")
    Image.new("L", (20, 51)).save(tmp_path / "large.png")
    read_image(tmp_path / "fits.png", 17)
    expected = r"^has 20 x 51 pixels, but may have at most 1,000 in all: make it smaller$"
    with pytest.raises(UnreadableImageError, match=expected):
        read_image(tmp_path / "large.png", 17)


def test_no_warning_of_the_image_library_reaches_the_user(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    Image.new("RGB", (20, 20)).save(tmp_path / "image.jpg", exif=exif)
    content = (tmp_path / "image.jpg").read_bytes()
    (tmp_path / "image.jpg").write_bytes(content.replace(b"II*\0", b"II*\1", 1).replace(b"MM\0*", b"MM\0+", 1))
    Image.new("1", (9500, 9500)).save(tmp_path / "image.png")
    program = (
        "import sys; from pathlib import Path; from trainable.data import images\n"
        "print(images.read_image(Path(sys.argv[1]), 17).shape)\n"
        "images.MAX_PIXELS = 1000  # Pillow would warn when it opens the file\n"
        "images.read_image(Path(sys.argv[2]), 17)"
    )
    command = [sys.executable, "-W", "default", "-c", program, str(tmp_path / "image.jpg"), str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "(17, 17, 3)\n"
    assert done.stderr.splitlines()[-1].endswith(
        "has 9,500 x 9,500 pixels, but may have at most 1,000 in all: make it smaller"
    )
    assert "Warning" not in done.stderr
