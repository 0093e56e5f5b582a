import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from spaces import Dataset, InputError, load_space
from trainable.data.cache import find_training_images, open_decoded
from trainable.data.datasets import open_training_data, prepare_training_data
from trainable.data.images import to_square
from trainable.data.sources import images_per_chunk, problem_of_test_folder
from trainable.data.splits import stratified_pick
from trainable.data.test_set import open_test_set


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of 6 training and 3 test images, 20 × 20, each of one colour."""
    colours = {"cat": (200, 10, 10), "dog": (10, 10, 200)}
    for split, n_images in (("train", 6), ("test", 3)):
        for name, colour in colours.items():
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(n_images):
                Image.new("RGB", (20 + i, 20), colour).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def folder_dataset(root: Path, **settings: object) -> Dataset:
    return Dataset(name="folder", root=str(root), image_size=18, validation_fraction=0.34, **settings)  # type: ignore[arg-type]


def test_digits_are_scikit_learns_and_split_the_same_way_every_time() -> None:
    dataset = Dataset(name="digits", image_size=17)
    data, test = prepare_training_data(dataset), open_test_set(dataset)
    assert len(data.everything) + len(test) == 1797
    pixels, labels = load_digits(return_X_y=True)
    greys = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    found = Counter(
        (image.tobytes(), label)
        for part in (data.everything, test)
        for image, label in zip(*part.gather(slice(None)), strict=True)
    )
    expected = [to_square(Image.fromarray(grey), 17).tobytes() for grey in greys]
    assert found == Counter(zip(expected, labels, strict=True))
    assert len(data.train) + len(data.validation) == len(data.everything)
    assert data.decoded.class_names == tuple("0123456789")
    seen = {image.tobytes() for image in data.decoded.images}
    assert not seen & {image.tobytes() for image in test.decoded.images}
    again = prepare_training_data(dataset)
    np.testing.assert_array_equal(again.validation.rows, data.validation.rows)


def test_no_image_is_in_two_parts_and_classes_keep_their_share(tiny_digits: Dataset) -> None:
    data = prepare_training_data(tiny_digits)
    assert len(data.everything) == 200
    assert len(data.validation) == 40
    assert not set(data.train.rows) & set(data.validation.rows)
    counts = np.bincount(data.validation.labels, minlength=10)
    assert counts.min() >= 3
    assert counts.max() <= 5


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"validation_fraction": 0.3}])
def test_another_split_is_another_split(tiny_digits: Dataset, change: dict[str, float]) -> None:
    one = prepare_training_data(tiny_digits)
    other = prepare_training_data(tiny_digits.model_copy(update=change))
    assert not np.array_equal(one.validation.rows, other.validation.rows)


def test_a_folder_is_decoded_with_its_class_names(folder: Path) -> None:
    data = prepare_training_data(folder_dataset(folder))
    assert data.decoded.class_names == ("cat", "dog")
    assert data.decoded.images.shape == (12, 18, 18, 3)
    assert isinstance(data.decoded.images, np.memmap)
    assert not data.decoded.images.flags.writeable
    images, labels = data.everything.gather(slice(0, 12))
    assert (images[labels == 0][..., 0] == 200).all()
    assert (images[labels == 1][..., 2] == 200).all()
    np.testing.assert_allclose(data.decoded.mean, np.array([105, 10, 105]) / 255)
    np.testing.assert_allclose(data.decoded.std, np.array([95, 0, 95]) / 255, atol=1e-5)


def test_training_works_without_the_test_folder_and_testing_does_not(folder: Path) -> None:
    shutil.rmtree(folder / "test")
    prepare_training_data(folder_dataset(folder))
    with pytest.raises(InputError, match="is not there"):
        open_test_set(folder_dataset(folder))


def test_a_second_opening_reads_the_cache_and_a_changed_file_does_not(folder: Path) -> None:
    first = prepare_training_data(folder_dataset(folder)).decoded
    assert prepare_training_data(folder_dataset(folder)).decoded.folder == first.folder
    changed = folder / "train" / "cat" / "0.png"
    Image.new("RGB", (20, 20), (0, 255, 0)).save(changed)
    os.utime(changed, ns=(1, 1))
    second = prepare_training_data(folder_dataset(folder)).decoded
    assert second.folder != first.folder
    assert second.content_sha256 != first.content_sha256


def flip_bit(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_every_flipped_bit_of_the_cache_is_told_and_the_split_is_decoded_again(
    name: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = folder_dataset(folder)
    intact = prepare_training_data(dataset).decoded
    images, labels, path = intact.images.copy(), intact.labels, intact.folder / name
    n_bits = 8 * path.stat().st_size
    # Each bit of numpy's 128 bytes of header, or of the description, has other consequences; pixels are alike.
    for bit in {*range(0, min(n_bits, 8 * 128), 43), *range(5, n_bits, n_bits // 9)}:
        flip_bit(path, bit)
        again = prepare_training_data(dataset).decoded
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"{intact.folder}: this image cache is damaged or of another version (")
        assert line.endswith("). It is made anew.")
        np.testing.assert_array_equal(again.images, images)
        np.testing.assert_array_equal(again.labels, labels)
        assert (again.class_names, again.mean, again.std) == (intact.class_names, intact.mean, intact.std)


def save_array(dtype: type, value: int) -> Callable[[Path], None]:
    return lambda path: np.save(path, np.full(np.load(path).shape, value, dtype=dtype))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[
            ("meta.json", lambda path, content=content: path.write_bytes(content))
            for content in (b"", b"[]", b"[" * 100_000, b'{"a": ' * 100_000, b"\xff\xfe", b'{"shape": null}')
        ],
        ("meta.json", lambda path: path.write_text(path.read_text().replace('"mean": [', '"mean": null, "x": ['))),
        ("labels.npy", save_array(np.int64, 134)),
        ("images.npy", save_array(np.int8, 0)),
        ("images.npy", lambda path: path.write_bytes(path.read_bytes() + b"\0")),
        ("images.npy", lambda path: path.write_bytes(path.read_bytes()[:-1])),
        ("images.npy", Path.unlink),
        ("images.npy", lambda path: (path.unlink(), path.mkdir())),
    ],
)
def test_a_damaged_cache_is_refused_by_workers_and_made_anew_by_a_command(
    name: str,
    damage: Callable[[Path], object],
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(folder / "cache"))  # without the same images of other tests
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    damage(decoded.folder / name)
    with pytest.raises(InputError, match=r"is a damaged image cache .* Start the command again: it is made anew"):
        open_decoded(decoded.folder)
    assert find_training_images(decoded.content_sha256, 18) is None
    assert prepare_training_data(folder_dataset(folder)).decoded.content_sha256 == decoded.content_sha256
    assert "It is made anew." in capfd.readouterr().err


def test_a_process_that_has_mapped_a_cache_keeps_it_while_another_makes_it_anew(folder: Path) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    before = decoded.images.copy()
    flip_bit(decoded.folder / "images.npy", 8 * 1000)
    open_decoded(decoded.folder)  # a worker does not compare the checksum, a command does
    prepare_training_data(folder_dataset(folder))
    assert (decoded.images != before).sum() == 1, "the changed pixel of the old file, which is kept"


def test_other_kinds_of_files_are_counted_and_capitals_are_no_other_kind(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.JPG", "b.JPEG", "c.jpeg", "d.Png"):
        Image.new("RGB", (20, 20)).save(folder / "train" / "cat" / name)
    prepare_training_data(folder_dataset(folder))
    assert capfd.readouterr().err == ""
    for name in ("cat/e.webp", "dog/f.WEBP", "cat/g.gif", "dog/notes", "cat/.hidden"):
        (folder / "train" / name).touch()
    (folder / "train" / "dog" / "more").mkdir()
    data = prepare_training_data(folder_dataset(folder))
    prepare_training_data(folder_dataset(folder))
    assert len(data.everything) == 16
    assert capfd.readouterr().err == (
        f"{folder}/train: 5 files are neither .png nor .jpg and not used "
        f"(.webp 2, .gif 1, folder 1, without an ending 1).\n"
    )


def test_what_retraining_would_refuse_of_the_test_folder_is_known_from_names_alone(folder: Path) -> None:
    dataset = folder_dataset(folder)
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"no image")
    assert problem_of_test_folder(dataset) is None
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    assert problem_of_test_folder(dataset) == (
        f"{folder}/test/dog: holds no .png or .jpg file, but every class must have images. "
        f"The search does without, but search.retrain refuses it: mend it."
    )
    (folder / "test" / "eel").mkdir()
    assert "test/eel: is a class that train/ does not have" in str(problem_of_test_folder(dataset))
    assert " (and 1 more like this). The search does" in str(problem_of_test_folder(dataset))
    shutil.rmtree(folder / "test")
    assert str(problem_of_test_folder(dataset)).startswith(f"{folder}/test: is not there, but must hold")
    assert problem_of_test_folder(Dataset(name="digits", image_size=17)) is None


@pytest.mark.parametrize(
    ("own", "xdg", "expected"),
    [
        ("own", "xdg", "own/cifar10"),
        (None, "xdg", "xdg/depthwise-search/cifar10"),
        (None, None, "home/.cache/depthwise-search/cifar10"),
    ],
)
def test_cifar10_is_in_the_cache_folder_unless_the_space_says_where(
    own: str | None, xdg: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable, name in (("DEPTHWISE_SEARCH_CACHE", own), ("XDG_CACHE_HOME", xdg)):
        if name:
            monkeypatch.setenv(variable, str(tmp_path / name))
        else:
            monkeypatch.delenv(variable, raising=False)
    shipped = load_space("cifar10").dataset.model_copy(update={"download": False})
    with pytest.raises(InputError, match=f"`dataset.root` is {tmp_path / expected}, but"):
        prepare_training_data(shipped)
    explicit = shipped.model_copy(update={"root": "~/.cache/depthwise-search/cifar10"})
    with pytest.raises(InputError, match=f"is {tmp_path}/home/.cache/depthwise-search/cifar10, but"):
        prepare_training_data(explicit)


def test_a_limit_beyond_the_data_takes_all_images_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = prepare_training_data(folder_dataset(folder, train_limit=4000))
    assert len(data.everything) == len(data.train) + len(data.validation) == 12
    assert capsys.readouterr().err == (
        "`dataset.train_limit` is 4,000, and 12 training images were found: all are used.\n"
    )
    opened = open_training_data(data.decoded.folder, folder_dataset(folder, train_limit=4000))
    assert opened.train.rows.tolist() == data.train.rows.tolist(), "a worker cuts them alike"
    prepare_training_data(folder_dataset(folder, train_limit=12))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("image_size", [17, 32, 128, 129, 512, 1024])
def test_a_chunk_of_large_images_has_no_more_pixels_than_one_of_small_images(image_size: int) -> None:
    n_images = images_per_chunk(image_size)
    assert 1 <= n_images <= 256
    assert n_images * image_size**2 <= 256 * 128**2
    assert (n_images == 256) == (image_size <= 128)


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=8),
    share=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_stratified_picks_keep_every_share_to_within_one(counts: list[int], share: float, seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    n_picked = round(share * len(labels))
    rows = stratified_pick(labels, n_picked, np.random.default_rng(seed))
    assert len(rows) == n_picked
    assert len(set(rows)) == n_picked
    picked = np.bincount(labels[rows], minlength=len(counts))
    np.testing.assert_array_less(np.abs(picked - np.array(counts) * n_picked / len(labels)), 1 + 1e-9)


def test_cifar10_is_torchvision_s_with_its_checksums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR10

    base = tmp_path / CIFAR10.base_folder
    base.mkdir()

    def write(name: str, content: dict[str, object]) -> tuple[str, str]:
        (base / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((base / name).read_bytes()).hexdigest()

    generator = np.random.default_rng(0)
    rows = {"data": generator.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
    names = [f"class{i}" for i in range(10)]
    monkeypatch.setattr(CIFAR10, "train_list", [write("data_batch_1", rows)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", rows)])
    meta_name, meta_md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": meta_name, "key": "label_names", "md5": meta_md5})

    dataset = Dataset(name="cifar10", root=str(tmp_path), image_size=32)
    data = prepare_training_data(dataset)
    expected = rows["data"].reshape(20, 3, 32, 32).transpose(0, 2, 3, 1)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(data.decoded.images, expected)
    assert data.decoded.class_names == tuple(names)
    assert data.decoded.mean == (0.4914, 0.4822, 0.4465)

    (base / "test_batch").write_bytes(b"not to be looked at")
    assert len(prepare_training_data(dataset).everything) == 20
    (base / "data_batch_1").write_bytes(b"half a download")
    with pytest.raises(InputError, match=r"must hold an intact CIFAR-10.*dataset\.download=true"):
        prepare_training_data(dataset)
