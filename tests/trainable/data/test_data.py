import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from spaces import Dataset, InputError, load_space
from trainable.data import cache, images
from trainable.data.cache import decode_once, find_training_images, open_decoded
from trainable.data.datasets import open_training_data, prepare_training_data
from trainable.data.images import UnreadableImageError, read_image
from trainable.data.sources import images_per_chunk, problem_of_test_folder
from trainable.data.splits import stratified_pick
from trainable.data.test_set import open_test_set
from trainable.environment import cache_root


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
    for bit in {*range(0, min(n_bits, 8 * 128), 13), *range(5, n_bits, n_bits // 20)}:
        flip_bit(path, bit)
        again = prepare_training_data(dataset).decoded
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith(f"{intact.folder}: this image cache is damaged or of another version (")
        assert line.endswith("). It is made anew.")
        np.testing.assert_array_equal(again.images, images)
        np.testing.assert_array_equal(again.labels, labels)
        assert (again.class_names, again.mean, again.std) == (intact.class_names, intact.mean, intact.std)


@pytest.mark.parametrize(
    "description",
    [
        b"",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
        b"\xff\xfe",
        '{"shape": null, "mean": null}',
        '{"shape": [12, 18, 18, 3], "class_names": ["cat", "dog"], "mean": null, "std": [1.0, 1.0, 1.0]}',
    ],
)
def test_a_description_that_is_none_is_a_damaged_cache(
    description: str | bytes, folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(folder / "cache"))  # without the same images of other tests
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    content = description.encode() if isinstance(description, str) else description
    (decoded.folder / "meta.json").write_bytes(content)
    with pytest.raises(InputError, match=r"is a damaged image cache .* Start the command again: it is made anew"):
        open_decoded(decoded.folder)
    assert find_training_images(decoded.content_sha256, 18) is None
    assert prepare_training_data(folder_dataset(folder)).decoded.content_sha256 == decoded.content_sha256
    assert "It is made anew." in capfd.readouterr().err


def test_labels_of_no_class_are_refused_without_a_look_at_the_pixels(folder: Path) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    labels = decoded.labels.copy()
    labels[3] = 134
    np.save(decoded.folder / "labels.npy", labels)
    with pytest.raises(InputError, match="labels of no class"):
        open_decoded(decoded.folder)


@pytest.mark.parametrize("damage", ["longer", "shorter", "missing", "folder", "other type"])
def test_an_array_that_is_not_the_described_one_is_a_damaged_cache(damage: str, folder: Path) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    path = decoded.folder / "images.npy"
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "longer":
            path.write_bytes(content + b"\0")
        case "shorter":
            path.write_bytes(content[:-1])
        case "folder":
            path.mkdir()
        case "other type":
            np.save(path, np.zeros(decoded.images.shape, dtype=np.int8))
    with pytest.raises(InputError, match="is a damaged image cache"):
        open_decoded(decoded.folder)
    assert prepare_training_data(folder_dataset(folder)).decoded.content_sha256 == decoded.content_sha256


def test_a_process_that_has_mapped_a_cache_keeps_it_while_another_makes_it_anew(folder: Path) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    before = decoded.images.copy()
    flip_bit(decoded.folder / "labels.npy", 8 * 130)
    prepare_training_data(folder_dataset(folder))
    np.testing.assert_array_equal(decoded.images, before)


def test_pixels_are_compared_with_their_checksum_once_a_command_and_not_by_each_worker(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = prepare_training_data(folder_dataset(folder)).decoded
    n_compared = []
    compare = cache._must_fit_checksum
    monkeypatch.setattr(cache, "_must_fit_checksum", lambda split: (n_compared.append(1), compare(split)))
    open_decoded(decoded.folder)
    assert len(n_compared) == 0
    prepare_training_data(folder_dataset(folder))
    assert len(n_compared) == 1


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


def test_images_are_decoded_side_by_side_only_while_their_pixels_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_DECODING", images._PixelBudget(1000))
    at_once: list[int] = []
    most = 0
    decode = images._upright

    def counted(image: Image.Image) -> Image.Image:
        nonlocal most
        at_once.append(image.width * image.height)
        most = max(most, sum(at_once))
        time.sleep(0.01)
        at_once.remove(image.width * image.height)
        return decode(image)

    monkeypatch.setattr(images, "_upright", counted)
    for i in range(24):
        Image.new("L", (20, (10, 20, 50)[i % 3])).save(tmp_path / f"{i}.png")
    threads = [threading.Thread(target=read_image, args=(tmp_path / f"{i}.png", 17)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 400 < most <= 1000


def test_an_image_that_cannot_be_decoded_gives_its_pixels_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_DECODING", images._PixelBudget(400))
    Image.effect_noise((20, 20), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(3):
        with pytest.raises(UnreadableImageError):
            read_image(tmp_path / "half.png", 17)
    read_image(tmp_path / "whole.png", 17)


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
        "import sys; from pathlib import Path; from trainable.data.images import read_image\n"
        "print([read_image(Path(path), 17).shape for path in sys.argv[1:]])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "image.jpg"), str(tmp_path / "image.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[(17, 17, 3), (17, 17, 3)]\n"
    assert done.stderr == ""


@pytest.mark.parametrize("image_size", [17, 32, 128, 129, 512, 1024])
def test_a_chunk_of_large_images_has_no_more_pixels_than_one_of_small_images(image_size: int) -> None:
    n_images = images_per_chunk(image_size)
    assert 1 <= n_images <= 256
    assert n_images * image_size**2 <= 256 * 128**2
    assert (n_images == 256) == (image_size <= 128)


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
