"""Sources of images: scikit-learn's digits, CIFAR-10, or a folder of image files.

A source lists the images of one split and decodes them on demand. `trainable.data.cache` stores the decoded images.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.error import URLError

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spaces import Dataset, InputError
from spaces.errors import expanded
from trainable.data.images import SUFFIXES, UnreadableImageError, read_image, to_square
from trainable.data.splits import stratified_pick
from trainable.environment import cache_root

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

Split = Literal["train", "test"]

# Images that are decoded at once: at most CHUNK_IMAGES, and at most CHUNK_PX resized pixels in total.
CHUNK_IMAGES = 256
CHUNK_PX = 256 * 128 * 128
# Threads that decode. Each may hold a photograph of hundreds of megabytes.
MOST_THREADS = min(8, os.cpu_count() or 1)
# A fifth of each class of the digits is the test set, picked with a fixed seed.
DIGITS_TEST_FRACTION = 0.2
DIGITS_TEST_SEED = 0
# Constants of the original code, kept so that results stay comparable; for other data sets they are measured.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2463, 0.2428, 0.2607)
MAX_FILES_NAMED = 10
MAX_KINDS_NAMED = 5


@dataclass(frozen=True)
class Source:
    """List of the images of one split, not decoded.

    Attributes:
        class_names: names of the classes, in the order of the labels.
        labels: (N,) int64, indices into `class_names`.
        identity: JSON values that identify the images: equal identities decode to equal images.
        chunks: yields the N images in order, as (n, image_size, image_size, 3) uint8 arrays.
        names: paths of the files, relative to the root, with `/`; None where images are not files.
        statistics: mean and standard deviation per channel, 0 to 1; None to measure them.
        remarks: remarks about the images for the user, one sentence each.
    """

    class_names: tuple[str, ...]
    labels: NDArray[np.int64]
    identity: dict[str, Any]
    chunks: Callable[[], Iterator[NDArray[np.uint8]]]
    names: tuple[str, ...] | None = None
    statistics: tuple[tuple[float, float, float], tuple[float, float, float]] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Listing:
    """Names of the files of one split of an image folder, class by class.

    Attributes:
        problems: reasons why the split is not usable, one line each.
        unused: number of other files, by their suffix.
    """

    paths: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


def images_per_chunk(image_size: int) -> int:
    """Number of images that `Source.chunks` decodes at once, for images of `image_size` × `image_size` pixels."""
    return max(1, min(CHUNK_IMAGES, CHUNK_PX // image_size**2))


def open_source(dataset: Dataset, split: Split) -> Source:
    """List the images of one split of the space's data set.

    Raises:
        InputError: the split is missing or not usable.
    """
    match dataset.name:
        case "digits":
            return _digits(dataset.image_size, split)
        case "cifar10":
            return _cifar10(dataset, split)
        case "folder":
            return _folder(expanded(str(dataset.root)), dataset.image_size, split)


def problem_of_test_folder(dataset: Dataset) -> str | None:
    """Reason why retraining would refuse the test images of an image folder; None if it would accept them.

    Reads the names of the files only.

    Raises:
        InputError: the training folder is missing, or has fewer than two classes.
    """
    if dataset.name != "folder":
        return None
    root = expanded(str(dataset.root))
    problems = _listed(root / "test", _class_names(root)).problems
    if not problems:
        return None
    more = f" (and {len(problems) - 1} more like this)" if len(problems) > 1 else ""
    return f"{problems[0].removesuffix('.')}{more}. The search does without, but search.retrain refuses it: mend it."


def _digits(image_size: int, split: Split) -> Source:
    # Read here, because the loader imports all of scikit-learn and scipy, which takes seconds.
    package = distribution("scikit-learn")
    rows_of_file = np.loadtxt(str(package.locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=",")
    labels = rows_of_file[:, -1].astype(np.int64)
    generator = np.random.default_rng(DIGITS_TEST_SEED)
    test_rows = stratified_pick(labels, round(DIGITS_TEST_FRACTION * len(labels)), generator)
    rows = test_rows if split == "test" else np.setdiff1d(np.arange(len(labels)), test_rows)
    grey = np.rint(rows_of_file[rows, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source(
        class_names=tuple("0123456789"),
        labels=labels[rows],
        identity={"digits": package.version},
        chunks=partial(_resized_chunks, grey, image_size),
    )


def _resized_chunks(arrays: NDArray[np.uint8], image_size: int) -> Iterator[NDArray[np.uint8]]:
    for chunk in _in_chunks(arrays, image_size):
        yield np.stack([to_square(Image.fromarray(array), image_size) for array in chunk])


def _cifar10(dataset: Dataset, split: Split) -> Source:
    from torchvision.datasets import CIFAR10

    root = cache_root() / "cifar10" if dataset.root is None else expanded(dataset.root)
    cifar10 = _intact_cifar10(root, split)
    if cifar10 is None and dataset.download:
        _fetch_cifar10(root)
        cifar10 = _intact_cifar10(root, split)
    if cifar10 is None:
        remedy = "" if dataset.download else " Let it be fetched: --set dataset.download=true."
        is_begun = _exists(root / CIFAR10.base_folder) or _exists(root / CIFAR10.filename)
        found = "what is there is not whole" if is_begun else "it is not there"
        raise InputError(f"`dataset.root` is {root}, but must hold an intact CIFAR-10: {found}.{remedy}")
    return Source(
        class_names=tuple(cifar10.classes),
        labels=np.asarray(cifar10.targets, dtype=np.int64),
        identity={"cifar10": CIFAR10.tgz_md5},
        chunks=partial(_resized_chunks, cifar10.data, dataset.image_size),
        statistics=(CIFAR10_MEAN, CIFAR10_STD),
    )


def _intact_cifar10(root: Path, split: Split) -> "CIFAR10 | None":
    """Read CIFAR-10 with torchvision, which unpickles files, but only if they have the official checksums."""
    from torchvision.datasets import CIFAR10

    try:
        # Empty the list of the other split's files, which torchvision would check too.
        other = "test_list" if split == "train" else "train_list"
        return type(CIFAR10.__name__, (CIFAR10,), {other: []})(str(root), train=split == "train", download=False)
    except RuntimeError:  # raised by torchvision if a file is missing or has another checksum
        return None
    except OSError as error:
        raise InputError(_cannot_be_read(root, error)) from None


def _fetch_cifar10(root: Path) -> None:
    """Download and unpack CIFAR-10; only unpack it if the archive is in `root` already."""
    from torchvision.datasets import CIFAR10

    for path in (root / CIFAR10.filename, root / CIFAR10.base_folder, *(root / CIFAR10.base_folder).glob("*")):
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link, through which a download would write. Remove it.")
    try:
        root.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(root), download=True)
    except (URLError, ConnectionError, TimeoutError, HTTPException, RuntimeError) as error:
        # torchvision raises a RuntimeError where the download has another checksum.
        reason = "what came has another checksum" if isinstance(error, RuntimeError) else error
        raise InputError(
            f"`dataset.root` is {root}, but CIFAR-10 is not there and cannot be fetched ({reason}). Try again, put "
            f"{CIFAR10.filename} there by hand, or use an image folder: --set dataset.name=folder."
        ) from None
    except OSError as error:
        raise InputError(
            f"`dataset.root` is {root}, but CIFAR-10 cannot be written there: {error.strerror or error}. "
            f"Choose another folder, or make room."
        ) from None


def _folder(root: Path, image_size: int, split: Split) -> Source:
    class_names = _class_names(root)
    listing = _listed(root / split, class_names)
    _refuse(listing.problems, "Mend them.")
    paths = listing.paths

    def chunks() -> Iterator[NDArray[np.uint8]]:
        unreadable: list[str] = []
        with ThreadPoolExecutor(MOST_THREADS) as pool:
            for chunk in _in_chunks(paths, image_size):
                decoded = list(pool.map(lambda path: _read_or_reason(path, image_size), chunk))
                unreadable += [image for image in decoded if isinstance(image, str)]
                if not unreadable:
                    yield np.stack([image for image in decoded if not isinstance(image, str)])
        _refuse(unreadable, "Remove or replace them.")

    return Source(
        class_names=class_names,
        labels=np.asarray(listing.labels, dtype=np.int64),
        identity={"folder": str(root.resolve()), "files": _sizes_and_times(root, paths)},
        chunks=chunks,
        names=tuple(path.relative_to(root).as_posix() for path in paths),
        remarks=_remarks(root / split, listing.unused),
    )


def _in_chunks(items: Sequence[Any] | NDArray[Any], image_size: int) -> Iterator[Any]:
    n_images = images_per_chunk(image_size)
    for start in range(0, len(items), n_images):
        yield items[start : start + n_images]


def _remarks(folder: Path, unused: Counter[str]) -> tuple[str, ...]:
    n_files = unused.total()
    if not n_files:
        return ()
    are = "file is" if n_files == 1 else "files are"
    kinds = [f"{kind} {n}" for kind, n in unused.most_common(MAX_KINDS_NAMED)]
    more = ", …" if len(unused) > MAX_KINDS_NAMED else ""
    return (f"{folder}: {n_files} {are} neither .png nor .jpg and not used ({', '.join(kinds)}{more}).",)


def _class_names(root: Path) -> tuple[str, ...]:
    folder = root / "train"
    must_hold = f"`dataset.root` is {root}, but must be a folder that holds train/<class>/*.png or *.jpg"
    for path in (root, folder):
        if _exists(path) and not path.is_dir():
            raise InputError(f"{must_hold}: {path} is a file.")
    if not _exists(folder):
        raise InputError(f"{must_hold}: there is no {folder}.")
    names = tuple(_class_folders(folder))
    if len(names) < 2:
        found = f"has one class folder (`{names[0]}`)" if names else "has no class folder"
        raise InputError(f"{folder}: {found}, but must have at least 2: one a class, with its images inside.")
    no_text = [
        f"{folder / name}: is named by bytes that are no UTF-8 text. Rename it." for name in names if _no_text(name)
    ]
    _refuse(no_text, "Rename them.")
    return names


def _listed(folder: Path, class_names: Sequence[str]) -> _Listing:
    listing = _Listing()
    if not _exists(folder):
        listing.problems.append(f"{folder}: is not there, but must hold <class>/*.png or *.jpg.")
        return listing
    for name in _class_folders(folder):
        if name not in class_names:
            listing.problems.append(
                f"{folder / name}: is a class that train/ does not have. Remove it, or add training images for it."
            )
    for label, name in enumerate(class_names):
        try:
            entries = sorted(path for path in (folder / name).iterdir() if not _is_hidden(path))
        except OSError as error:
            listing.problems.append(_cannot_be_read(folder / name, error))
            continue
        images = [path for path in entries if path.suffix.lower() in SUFFIXES]
        if not images:
            listing.problems.append(f"{folder / name}: holds no .png or .jpg file, but every class must have images.")
        listing.paths.extend(images)
        listing.labels.extend([label] * len(images))
        listing.unused.update(_kind(path) for path in entries if path.suffix.lower() not in SUFFIXES)
    return listing


def _class_folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not _is_hidden(entry))
    except OSError as error:
        raise InputError(_cannot_be_read(folder, error)) from None


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else path.suffix.lower() or "without an ending"


def _sizes_and_times(root: Path, paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Name, size in bytes and modification time in nanoseconds of each file, to detect changes."""
    files, problems = [], []
    for path in paths:
        try:
            status = path.stat()
            files.append((path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns))
        except OSError as error:
            problems.append(_cannot_be_read(path, error))
    _refuse(problems, "Remove or replace them.")
    return files


def _read_or_reason(path: Path, image_size: int) -> NDArray[np.uint8] | str:
    try:
        return read_image(path, image_size)
    except UnreadableImageError as error:
        return f"{path}: {error}."


def _refuse(problems: Sequence[str], remedy: str) -> None:
    if not problems:
        return
    lines = list(problems[:MAX_FILES_NAMED])
    if len(problems) > MAX_FILES_NAMED:
        lines.append(f"… and {len(problems) - MAX_FILES_NAMED} more like these. {remedy}")
    raise InputError(lines)


def _cannot_be_read(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and path.is_symlink():
        return f"{path}: is a symbolic link to {path.readlink()}, which is not there. Remove or mend it."
    remedy = " Allow it to be read (chmod), or choose another." if isinstance(error, PermissionError) else ""
    return f"{path}: cannot be read: {error.strerror}.{remedy}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(_cannot_be_read(path, error)) from None


def _no_text(name: str) -> bool:
    # Python represents undecodable bytes as lone surrogates, which JSON readers and manifests reject.
    return any("\ud800" <= character <= "\udfff" for character in name)


def _is_hidden(path: Path) -> bool:
    return path.name.startswith(".")
