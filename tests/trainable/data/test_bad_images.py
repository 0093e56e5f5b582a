"""Image folders and CIFAR-10 that cannot be used, at the command's door: what is said, and that it is said at once."""

import os
import pickle
import shutil
import stat
import urllib.request
from collections.abc import Callable
from http.client import BadStatusLine
from io import BytesIO
from pathlib import Path
from urllib.error import URLError

import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from search import run as run_command
from tests.conftest import set_options

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


NO_IMAGES = "holds no .png or .jpg file, but every class must have images."
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"


def empty_classes(train: Path) -> None:
    (train / "eel").mkdir()
    (train / "fox").mkdir()
    (train / "fox" / "notes.txt").touch()


def one_image_of_cats(train: Path) -> None:
    for i in range(1, 6):
        (train / "cat" / f"{i}.png").unlink()


def hidden_cats_only(train: Path) -> None:
    shutil.rmtree(train / "dog")
    (train / "cat").rename(train / ".hidden")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (empty_classes, [f"/eel: {NO_IMAGES}", f"/fox: {NO_IMAGES}"]),
        (
            lambda train: shutil.rmtree(train / "dog"),
            [": has one class folder (`cat`), but must have at least 2: one a class, with its images inside."],
        ),
        (hidden_cats_only, [": has no class folder, but must have at least 2: one a class, with its images inside."]),
        (
            lambda train: (train / "dog").rename(train / os.fsdecode(b"caf\xe9")),
            ["/caf\\udce9: is named by bytes that are no UTF-8 text. Rename it."],
        ),
        (lambda train: (train / "\x1b[2J\r\n").mkdir(), [f"/\\x1b[2J\\r\\n: {NO_IMAGES}"]),
        # A decoder would have to run this program.
        (lambda train: (train / "cat" / "x.png").write_bytes(POSTSCRIPT), ["/cat/x.png: is not an image."]),
        # What is no file is not waited for.
        (lambda train: os.mkfifo(train / "cat" / "x.png"), ["/cat/x.png: is not a file."]),
        (lambda train: (train / "cat" / "x.png").mkdir(), ["/cat/x.png: is not a file."]),
        (lambda train: (train / "cat" / "x.png").symlink_to("/dev/zero"), ["/cat/x.png: is not a file."]),
        (
            lambda train: (train / "cat" / "x.png").symlink_to("gone.png"),
            ["/cat/x.png: is a symbolic link to gone.png, which is not there. Remove or mend it."],
        ),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(
    damage: Callable[[Path], object], expected: list[str], images: Path, refusal: Refusal
) -> None:
    damage(images / "train")
    assert refusal("folder", images) == [f"{images}/train{line}" for line in expected]


def test_a_class_of_one_image_cannot_be_split(images: Path, refusal: Refusal) -> None:
    one_image_of_cats(images / "train")
    (line,) = refusal("folder", images)
    assert line.startswith("class `cat` has 1 training images, but must have at least 2")


@pytest.mark.parametrize(("n_bad", "n_lines"), [(10, 10), (11, 11), (30, 11)])
def test_unreadable_files_are_named_up_to_ten_and_then_counted(
    n_bad: int, n_lines: int, images: Path, refusal: Refusal
) -> None:
    whole = (images / "train" / "cat" / "0.png").read_bytes()
    for i in range(n_bad):
        content = (b"", b"no image", whole[: len(whole) // 2])[i % 3]
        (images / "train" / "cat" / f"bad{i:02d}.png").write_bytes(content)
    (images / "train" / "cat" / "no_end.png").write_bytes(whole[:-4] + b"%!PS")  # Pillow does without the end
    lines = refusal("folder", images)
    assert len(lines) == n_lines
    assert lines[0] == f"{images}/train/cat/bad00.png: is not an image."
    if n_bad > 10:
        assert lines[-1] == f"… and {n_bad - 10} more like these. Remove or replace them."


def test_a_missing_test_class_is_told_before_a_search_and_does_not_stop_it(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = set_options("dataset.name=folder", f"dataset.root={images}", "dataset.validation_fraction=0.34")
    for path in (images / "test" / "dog").iterdir():
        path.unlink()
    assert run_command.main([*options, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"{images}/test/dog: {NO_IMAGES} The search does without, but search.retrain refuses it: mend it.\n"
    )
    assert "data set    folder" in captured.out


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
        ('"a\\0b"', "holds characters that no path can have."),
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


# CIFAR-10.


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(URLError("Name or service not known"), monkeypatch)


def answer_with(answer: Exception | bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def urlopen(*arguments: object, **more: object) -> BytesIO:
        if isinstance(answer, Exception):
            raise answer
        return Response(answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


class Response(BytesIO):
    url = CIFAR10.url
    length = 4


ALLOWED = "dataset.download=true"


def test_cifar10_that_is_not_there_is_fetched_only_where_that_is_allowed(tmp_path: Path, refusal: Refusal) -> None:
    root = tmp_path / "cifar"
    assert refusal("cifar10", root) == [
        f"`dataset.root` is {root}, but must hold an intact CIFAR-10: it is not there. "
        f"Let it be fetched: --set dataset.download=true."
    ]
    assert not root.exists()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (URLError("Name or service not known"), "<urlopen error Name or service not known>"),
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (TimeoutError("timed out"), "timed out"),
        (BadStatusLine("<html>"), "<html>"),
        (b"half", "what came has another checksum"),
    ],
)
def test_a_download_that_fails_is_one_line(
    answer: Exception | bytes, reason: str, tmp_path: Path, refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer_with(answer, monkeypatch)
    *_progress, line = refusal("cifar10", tmp_path / "cifar", ALLOWED)
    assert line == (
        f"`dataset.root` is {tmp_path}/cifar, but CIFAR-10 is not there and cannot be fetched ({reason}). Try again, "
        f"put cifar-10-python.tar.gz there by hand, or use an image folder: --set dataset.name=folder."
    )


def test_half_a_download_is_named_and_fetched_anew(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / CIFAR10.filename).write_bytes(b"\x1f\x8b half of it")
    (line,) = refusal("cifar10", tmp_path)
    assert "what is there is not whole. Let it be fetched" in line
    (line,) = refusal("cifar10", tmp_path, ALLOWED)
    assert "cannot be fetched" in line


def test_a_file_with_another_checksum_is_never_unpickled(tmp_path: Path, refusal: Refusal) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return (os.mkdir, (str(tmp_path / "marker"),))

    (tmp_path / CIFAR10.base_folder).mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (tmp_path / CIFAR10.base_folder / name).write_bytes(pickle.dumps(Bomb()))
    (line,) = refusal("cifar10", tmp_path)
    assert "must hold an intact CIFAR-10: what is there is not whole. Let it be fetched" in line
    (line,) = refusal("cifar10", tmp_path, ALLOWED)
    assert "cannot be fetched" in line
    assert not (tmp_path / "marker").exists()


def test_a_root_that_is_a_file_cannot_hold_cifar10(tmp_path: Path, refusal: Refusal) -> None:
    (tmp_path / "file").touch()
    (line,) = refusal("cifar10", tmp_path / "file")
    assert "must hold an intact CIFAR-10" in line
    (line,) = refusal("cifar10", tmp_path / "file", ALLOWED)
    assert line.endswith("cannot be written there: File exists. Choose another folder, or make room.")


@pytest.mark.parametrize("place", ["cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar-10-batches-py/test_batch"])
def test_a_download_writes_through_no_link(place: str, tmp_path: Path, refusal: Refusal) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "cifar" / place
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    (line,) = refusal("cifar10", tmp_path / "cifar", ALLOWED)
    assert line == f"{path}: is a symbolic link, through which a download would write. Remove it."
    assert victim.read_text() == "precious"
