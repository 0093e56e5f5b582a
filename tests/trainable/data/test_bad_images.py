"""Image folders and CIFAR-10 that cannot be used, at the command's door: what is said, and that it is said at once."""

import os
import stat
import struct
import urllib.request
import zlib
from collections.abc import Callable
from http.client import BadStatusLine
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from search import run as run_command
from tests.conftest import set_options
from trainable.data.images import read_image

Refusal = Callable[..., list[str]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of 6 training and 3 test images, each of one colour."""
    for split, n_images in (("train", 6), ("test", 3)):
        for name, colour in {"cat": (200, 10, 10), "dog": (10, 10, 200)}.items():
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for i in range(n_images):
                Image.new("RGB", (20 + i, 20), colour).save(tmp_path / "images" / split / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """The lines by which `search.run` refuses a data set; it must do so before it has made anything."""
    monkeypatch.chdir(tmp_path)

    def refused(name: str, root: object, *overrides: str) -> list[str]:
        options = set_options(
            f"dataset.name={name}", f"dataset.root={root}", "dataset.validation_fraction=0.34", *overrides
        )
        assert run_command.main([*options, "--quiet"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert not (tmp_path / "results").exists()
        lines = captured.err.splitlines()
        assert all(line.isprintable() for line in lines)
        return lines

    return refused


def test_empty_classes_are_named_together(images: Path, refusal: Refusal) -> None:
    (images / "train" / "eel").mkdir()
    (images / "train" / "fox").mkdir()
    (images / "train" / "fox" / "notes.txt").touch()
    lines = refusal("folder", images)
    assert lines == [
        f"{images}/train/{name}: holds no .png or .jpg file, but every class must have images."
        for name in ("eel", "fox")
    ]


@pytest.mark.parametrize(("n_bad", "n_lines"), [(1, 1), (10, 10), (11, 11), (40, 11)])
def test_unreadable_files_are_named_up_to_ten_and_then_counted(
    n_bad: int, n_lines: int, images: Path, refusal: Refusal
) -> None:
    whole = (images / "train" / "cat" / "0.png").read_bytes()
    for i in range(n_bad):
        content = (b"", b"no image", whole[: len(whole) // 2], whole[:-4] + b"%!PS")[i % 4]
        (images / "train" / "cat" / f"bad{i:02d}.png").write_bytes(content)
    lines = refusal("folder", images)
    # The fourth kind lacks only the end, which Pillow does without.
    n_unreadable = sum(i % 4 < 3 for i in range(n_bad))
    assert len(lines) == min(n_unreadable, 10) + (n_unreadable > 10)
    assert lines[0] == f"{images}/train/cat/bad00.png: is not an image."
    if n_unreadable > 10:
        assert lines[-1] == f"… and {n_unreadable - 10} more like these. Remove or replace them."


def test_a_file_that_a_decoder_would_have_to_run_is_no_image(images: Path, refusal: Refusal) -> None:
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"
    (images / "train" / "cat" / "program.png").write_bytes(program)
    assert refusal("folder", images) == [f"{images}/train/cat/program.png: is not an image."]


@pytest.mark.parametrize("kind", ["FIFO", "folder", "device", "nowhere"])
def test_an_image_that_is_no_file_is_not_waited_for(kind: str, images: Path, refusal: Refusal) -> None:
    path = images / "train" / "cat" / "odd.png"
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "nowhere":
            path.symlink_to("gone.png")
    expected = "is a symbolic link to gone.png, which is not there. Remove or mend it."
    assert refusal("folder", images) == [f"{path}: {expected if kind == 'nowhere' else 'is not a file.'}"]


def test_a_missing_test_class_is_told_before_a_search_and_does_not_stop_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = set_options("dataset.name=folder", f"dataset.root={images}", "dataset.validation_fraction=0.34")
    assert run_command.main([*options, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    for path in (images / "test" / "dog").iterdir():
        path.unlink()
    assert run_command.main([*options, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"{images}/test/dog: holds no .png or .jpg file, but every class must have images. "
        f"The search does without, but search.retrain refuses it: mend it.\n"
    )
    assert "data set    folder" in captured.out


def test_one_class_only_is_no_choice(images: Path, refusal: Refusal) -> None:
    for path in (images / "train" / "dog").iterdir():
        path.unlink()
    (images / "train" / "dog").rmdir()
    (line,) = refusal("folder", images)
    assert line.startswith(f"{images}/train: has one class folder (`cat`), but must have at least 2")
    (images / "train" / "cat").rename(images / "train" / ".hidden")
    (line,) = refusal("folder", images)
    assert line.startswith(f"{images}/train: has no class folder, but must have at least 2")


def test_a_class_of_one_image_cannot_be_split(images: Path, refusal: Refusal) -> None:
    for i in range(1, 6):
        (images / "train" / "cat" / f"{i}.png").unlink()
    (line,) = refusal("folder", images)
    assert line.startswith("class `cat` has 1 training images, but must have at least 2")


@pytest.mark.parametrize(
    ("root", "end"),
    [
        ("nowhere", "there is no nowhere/train."),
        (".", "there is no train."),
        ("file", "file is a file."),
        ("half", "half/train is a file."),
        ("circle", "there is no circle/train."),
    ],
)
def test_a_wrong_path_says_what_must_be_there(root: str, end: str, tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train").touch()
    (tmp_path / "circle").symlink_to("circle")
    (line,) = refusal("folder", tmp_path / root)
    assert "must be a folder that holds train/<class>/*.png or *.jpg: " in line
    assert line.replace(f"{tmp_path}/", "").endswith(end)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ('"a\\0b"', "holds a NUL character, which no path can have."),
        ('"\\ud800"', "holds characters that no path can have."),
        ("x" * 300, "is too long for a path"),
        ("x/" * 3000, "is too long for a path"),
        ("~nosuchuser/x", "begins with the home of a user that this machine does not have."),
        ('"\\e[2J"', "there is no "),
        ("3", "must be text."),
    ],
)
@pytest.mark.parametrize("name", ["folder", "cifar10"])
def test_an_impossible_path_is_one_line(name: str, root: str, expected: str, refusal: Refusal) -> None:
    (line,) = refusal(name, root)
    assert (expected if name == "folder" or "there is" not in expected else "it is not there") in line


def forbid(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the permission to read `path` away, also from root, who would otherwise still have it."""
    path.chmod(0)
    if os.getuid() != 0:
        return
    for name in ("open", "listdir", "scandir"):
        original = getattr(os, name)

        def refusing(
            target: object, *rest: object, _original: Callable[..., object] = original, **more: object
        ) -> object:
            if isinstance(target, str | Path) and Path(target) == path:
                raise PermissionError(13, "Permission denied", str(target))
            return _original(target, *rest, **more)

        monkeypatch.setattr(os, name, refusing)


@pytest.mark.parametrize("place", ["train", "train/cat", "train/cat/0.png"])
def test_what_must_not_be_read_is_named(
    place: str, images: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = stat.S_IMODE((images / place).stat().st_mode)
    forbid(images / place, monkeypatch)
    (line,) = refusal("folder", images)
    assert line.startswith(f"{images}/{place}: ")
    assert "Permission denied" in line
    (images / place).chmod(mode)


def test_a_class_named_by_bytes_that_are_no_text_is_refused_before_anything_is_decoded(
    images: Path, refusal: Refusal
) -> None:
    (images / "train" / "dog").rename(images / "train" / os.fsdecode(b"caf\xe9"))
    assert refusal("folder", images) == [
        f"{images}/train/caf\\udce9: is named by bytes that are no UTF-8 text. Rename it."
    ]


def test_a_class_name_that_commands_a_terminal_is_shown_as_it_is_written(images: Path, refusal: Refusal) -> None:
    (images / "train" / "\x1b[2J\r\n").mkdir()
    assert refusal("folder", images) == [
        f"{images}/train/\\x1b[2J\\r\\n: holds no .png or .jpg file, but every class must have images."
    ]


# Kinds of images that are fine.


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
    path = tmp_path / "image.png"
    path.write_bytes(png(np.tile(np.array(pixel), (20, 30, 1)), bits, colour_type))
    np.testing.assert_allclose(read_image(path, 17)[8, 8], expected, atol=1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128, 255])])
def test_a_palette_gives_its_colours_whether_transparent_or_not(transparency: object, tmp_path: Path) -> None:
    image = Image.new("P", (20, 20), 1)
    image.putpalette([255, 0, 0, 10, 200, 30, 0, 0, 255])
    image.save(tmp_path / "image.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png", 17)[8, 8], (10, 200, 30))


def test_cmyk_and_grey_photographs_are_fine(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "cmyk.jpg", 17)[8, 8], (254, 0, 0), atol=2)
    Image.new("L", (20, 20), 77).save(tmp_path / "grey.jpg")
    np.testing.assert_allclose(read_image(tmp_path / "grey.jpg", 17)[8, 8], 77, atol=1)


# CIFAR-10.


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


ALLOWED = "dataset.download=true"


def test_cifar10_that_is_not_there_is_fetched_only_where_that_is_allowed(
    tmp_path: Path, refusal: Refusal, no_network: None
) -> None:
    root = tmp_path / "cifar"
    assert refusal("cifar10", root) == [
        f"`dataset.root` is {root}, but must hold an intact CIFAR-10: it is not there. "
        f"Let it be fetched: --set dataset.download=true."
    ]
    assert not root.exists()
    (line,) = refusal("cifar10", root, ALLOWED)
    assert line == (
        f"`dataset.root` is {root}, but CIFAR-10 is not there and cannot be fetched "
        f"(<urlopen error Name or service not known>). Put cifar-10-python.tar.gz there by hand, "
        f"or use an image folder: --set dataset.name=folder."
    )


def test_half_a_download_is_named_and_fetched_anew(tmp_path: Path, refusal: Refusal, no_network: None) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(b"\x1f\x8b half of it")
    (line,) = refusal("cifar10", tmp_path)
    assert "there is cifar-10-python.tar.gz, but not unpacked, or not whole. Let it be fetched" in line
    (line,) = refusal("cifar10", tmp_path, ALLOWED)
    assert "cannot be fetched" in line


def test_a_file_with_another_checksum_is_never_unpickled(tmp_path: Path, refusal: Refusal, no_network: None) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return (os.mkdir, (str(tmp_path / "marker"),))

    (tmp_path / CIFAR10.base_folder).mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        (tmp_path / CIFAR10.base_folder / name).write_bytes(pickle.dumps(Bomb()))
    (tmp_path / CIFAR10.base_folder / "batches.meta").write_bytes(pickle.dumps(Bomb()))
    (line,) = refusal("cifar10", tmp_path)
    assert "must hold an intact CIFAR-10: what is there is damaged. Let it be fetched" in line
    (line,) = refusal("cifar10", tmp_path, ALLOWED)
    assert "cannot be fetched" in line
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
        (BadStatusLine("<html>"), "<html>"),
    ],
)
def test_a_download_that_breaks_off_is_one_line(
    error: Exception, expected: str, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    (line,) = refusal("cifar10", tmp_path / "cifar", ALLOWED)
    assert "cannot be fetched (" in line
    assert expected in line


def test_what_came_with_another_checksum_is_not_used(
    tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Response(BytesIO):
        url = CIFAR10.url
        length = 4

    monkeypatch.setattr(urllib.request, "urlopen", lambda request: Response(b"half"))
    *_progress, line = refusal("cifar10", tmp_path / "cifar", ALLOWED)
    assert "could not be fetched whole: what came has another checksum. Try again. Put cifar-10" in line


def test_a_root_that_is_a_file_cannot_hold_cifar10(tmp_path: Path, refusal: Refusal, no_network: None) -> None:
    (tmp_path / "file").touch()
    (line,) = refusal("cifar10", tmp_path / "file")
    assert "must hold an intact CIFAR-10" in line
    (line,) = refusal("cifar10", tmp_path / "file", ALLOWED)
    assert line.endswith("cannot be written there: File exists. Choose another folder, or make room.")


@pytest.mark.parametrize("place", ["cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar-10-batches-py/test_batch"])
def test_a_download_writes_through_no_link(place: str, tmp_path: Path, refusal: Refusal, no_network: None) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "cifar" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    (line,) = refusal("cifar10", tmp_path / "cifar", ALLOWED)
    assert line == f"{path}: is a symbolic link, through which a download would write. Remove it."
    assert victim.read_text() == "precious"
