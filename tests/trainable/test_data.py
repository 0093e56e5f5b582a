import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from spaces import Dataset, InputError
from trainable.cache import cache_root, decode_once, open_decoded
from trainable.datasets import open_training_data, prepare_training_data
from trainable.images import UnreadableImageError, read_image
from trainable.splits import stratified_pick
from trainable.test_set import open_test_set


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
    assert len(data.train) + len(data.validation) == len(data.everything)
    assert data.decoded.class_names == tuple("0123456789")
    pixels = {image.tobytes() for image in data.decoded.images}
    assert not pixels & {image.tobytes() for image in test.decoded.images}
    again = prepare_training_data(dataset)
    np.testing.assert_array_equal(again.validation.rows, data.validation.rows)


def test_digits_keep_their_shape() -> None:
    data = prepare_training_data(Dataset(name="digits", image_size=64))
    small = {tuple(np.rint(image * 255 / 16).astype(int).ravel()) for image in load_digits().images}
    shrunk = np.asarray(Image.fromarray(data.decoded.images[0]).convert("L").resize((8, 8), Image.Resampling.BOX))
    distances = [np.abs(shrunk.ravel() - candidate).mean() for candidate in small]
    assert min(distances) < 30
    assert sorted(distances)[0] < 0.8 * sorted(distances)[20]


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


def test_a_damaged_cache_is_named_and_not_used(folder: Path) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    meta = json.loads((decoded.folder / "meta.json").read_text())
    meta["shape"][0] += 1
    (decoded.folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(InputError, match="damaged image cache"):
        prepare_training_data(folder_dataset(folder))


def test_unreadable_images_are_named_up_to_ten_then_counted(folder: Path) -> None:
    for i in range(15):
        (folder / "train" / "cat" / f"bad{i:02d}.png").write_bytes(b"not an image")
    whole = (folder / "train" / "dog" / "0.png").read_bytes()
    (folder / "train" / "dog" / "0.png").write_bytes(whole[: len(whole) // 2])
    before = {path for path in cache_root().glob("*")}
    with pytest.raises(InputError) as caught:
        prepare_training_data(folder_dataset(folder))
    assert "bad00.png: is not an image." in caught.value.lines[0]
    assert len(caught.value.lines) == 11
    assert caught.value.lines[-1].startswith("… and 6 more")
    assert {path for path in cache_root().glob("*")} == before, "a half-made cache was left behind"


def test_problems_of_a_folder_are_reported_together(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "cat")
    (folder / "train" / "cat").mkdir()
    (folder / "train" / "eel").mkdir()
    with pytest.raises(InputError) as caught:
        prepare_training_data(folder_dataset(folder))
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in caught.value.lines] == ["cat", "eel"]


@pytest.mark.parametrize("root", ["/nowhere/at/all", "."])
def test_a_folder_without_images_says_what_it_must_hold(root: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a folder that holds train/<class>/\*\.png"):
        prepare_training_data(folder_dataset(tmp_path / root))


def test_classes_of_test_that_train_lacks_are_refused(folder: Path) -> None:
    (folder / "test" / "eel").mkdir()
    with pytest.raises(InputError, match="eel: is a class that train/ does not have"):
        open_test_set(folder_dataset(folder))


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


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("P", 0, None),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (254, 0, 0)),
        ("I;16", 100 * 256, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_images_of_other_kinds_become_rgb(
    mode: str, colour: object, expected: tuple[int, ...] | None, tmp_path: Path
) -> None:
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    Image.new(mode, (30, 20), colour).save(path)  # type: ignore[arg-type]
    image = read_image(path, 17)
    assert image.shape == (17, 17, 3)
    assert image.dtype == np.uint8
    if expected:
        np.testing.assert_allclose(image[8, 8], expected, atol=2)


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


def test_decoded_sets_open_in_any_process_from_their_folder_alone(tiny_digits: Dataset) -> None:
    decoded = decode_once(tiny_digits, "train")
    again = open_decoded(decoded.folder)
    assert again.content_sha256 == decoded.content_sha256
    assert not again.images.flags.writeable
