"""Cache of decoded images on disk: one uint8 array per split, memory-mapped by all processes of a machine."""

import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from rich.console import Console
from rich.progress import track

from spaces import Dataset, InputError
from spaces.plain_files import open_plain, read_plain
from spaces.printable import warn, warn_once
from trainable.data.sources import Source, Split, images_per_chunk, open_source
from trainable.environment import cache_root
from trainable.files import write_text

# Part of every fingerprint. Increase it when decoding changes.
DECODER_VERSION = 1
# Enough for a million class names.
MAX_DESCRIPTION_BYTES = 64 * 2**20


@dataclass(frozen=True)
class DecodedSet:
    """Decoded images of one split.

    Attributes:
        images: (N, H, W, 3) uint8 RGB, memory-mapped and read-only.
        labels: (N,) int64, indices into `class_names`.
        class_names: names of the classes, in the order of the labels.
        mean, std: mean and standard deviation per channel, RGB, for pixels scaled to 0 to 1.
        content_sha256: SHA-256 of the labels and pixels, in hexadecimal.
        folder: folder in the cache; `open_decoded` opens it in any process of this machine.
        names: paths of the image files, relative to the root of the data set; None for other data sets, and where the
            set was not opened by `decode_once`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    content_sha256: str
    folder: Path
    names: tuple[str, ...] | None = None

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])


class Description(BaseModel):
    """Content of `meta.json`, which describes the arrays in the same folder.

    Attributes:
        shape: (N, H, W, 3), shape of the images.
        class_names, mean, std, content_sha256: see `DecodedSet`.
    """

    # The file also holds a checksum. `read` compares the whole file byte by byte, so extra fields are ignored here.
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True, allow_inf_nan=False)

    shape: tuple[PositiveInt, PositiveInt, PositiveInt, Annotated[int, Field(ge=3, le=3)]]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    content_sha256: str

    @property
    def text(self) -> str:
        """Content of the file: the fields and their checksum."""
        fields = self.model_dump(mode="json")
        checksum = hashlib.sha256(json.dumps(fields).encode()).hexdigest()
        return json.dumps({**fields, "fields_sha256": checksum}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the description in the folder of a cached split.

        Raises:
            DamagedCacheError: the file differs from what `write` wrote.
        """
        content = read_plain(folder / "meta.json", MAX_DESCRIPTION_BYTES, follow_links=True)
        try:
            description = cls.model_validate_json(content)
        except (ValidationError, RecursionError):
            raise DamagedCacheError("meta.json is not a description of images") from None
        if description.text.encode() != content:
            raise DamagedCacheError("meta.json does not fit its checksum")
        return description

    def write(self, folder: Path) -> None:
        write_text(folder / "meta.json", self.text)


class DamagedCacheError(ValueError):
    """A cached split differs from what was written. The message says how, without the path."""


def decode_once(dataset: Dataset, split: Split, show_progress: bool = False) -> DecodedSet:
    """Open a split from the cache; decode it first if it is missing or damaged.

    Raises:
        InputError: the data set is missing or not usable.
    """
    source = open_source(dataset, split)
    for remark in source.remarks:
        warn_once(remark)
    folder = cache_root() / _fingerprint(source, dataset, split)
    decoded = open_intact(folder)
    if decoded is None:
        with filled_once(folder) as temporary:
            _decode(temporary, source, dataset.image_size, show_progress)
        decoded = open_decoded(folder)
    return replace(decoded, names=source.names)


def open_intact(folder: Path) -> DecodedSet | None:
    """Map a cached split into memory after comparing it with its checksum; None if it is missing or damaged.

    A damaged split is removed with a warning.
    """
    if not folder.is_dir():
        return None
    try:
        decoded = _opened(folder)
        _must_fit_checksum(decoded)
        return decoded
    except DamagedCacheError as error:
        warn(f"{folder}: this image cache is damaged or of another version ({error}). It is made anew.")
        _remove_at_once(folder)
        return None


def open_decoded(folder: Path) -> DecodedSet:
    """Map a cached split into memory, in another process than that of `decode_once`; the pixels are not checked.

    Raises:
        InputError: the folder is damaged.
    """
    try:
        return _opened(folder)
    except DamagedCacheError as error:
        raise InputError(
            f"{folder}: is a damaged image cache ({error}). Start the command again: it is made anew."
        ) from None


def find_training_images(content_sha256: str, image_size: int) -> DecodedSet | None:
    """Training images in the cache with this checksum (see `DecodedSet`) and this side; None if the cache has none.

    The original image files are not read.
    """
    for folder in sorted(cache_root().glob(f"*-train-{image_size}px-*")):
        try:
            decoded = _opened(folder)
            if decoded.content_sha256 == content_sha256:
                _must_fit_checksum(decoded)
                return decoded
        except DamagedCacheError:
            continue  # `decode_once` reports the damage when a command needs these images
    return None


def _opened(folder: Path) -> DecodedSet:
    try:
        description = Description.read(folder)
        images = _mapped(folder / "images.npy", np.uint8, description.shape)
        labels = np.array(_mapped(folder / "labels.npy", np.int64, description.shape[:1]))
    except InputError:
        raise DamagedCacheError("it holds something other than files") from None
    except OSError as error:
        raise DamagedCacheError(f"{error.strerror or error}") from None
    if labels.min() < 0 or labels.max() >= len(description.class_names):
        raise DamagedCacheError("labels.npy holds labels of no class")
    return DecodedSet(images, labels, folder=folder, **description.model_dump(exclude={"shape"}))


def _mapped(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Map an array file whose size and header must equal, byte by byte, what numpy writes for such an array."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    n_bytes = header.tell() + math.prod(shape) * np.dtype(dtype).itemsize
    with open_plain(path, follow_links=True) as file:
        if os.fstat(file.fileno()).st_size != n_bytes or file.read(header.tell()) != header.getvalue():
            raise DamagedCacheError(f"{path.name} is not the array that meta.json describes")
        return np.memmap(file, dtype=dtype, mode="r", offset=header.tell(), shape=shape)


def _must_fit_checksum(decoded: DecodedSet) -> None:
    digest = hashlib.sha256(decoded.labels.tobytes())
    digest.update(decoded.images.reshape(-1).data)
    if digest.hexdigest() != decoded.content_sha256:
        raise DamagedCacheError("images or labels do not fit their checksum")


def _remove_at_once(folder: Path) -> None:
    """Remove a folder, in one step as seen by other processes. Files that they have mapped stay readable."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        folder.rename(aside / folder.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fingerprint(source: Source, dataset: Dataset, split: Split) -> str:
    identity = [DECODER_VERSION, dataset.name, split, dataset.image_size, source.identity]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{dataset.name}-{split}-{dataset.image_size}px-{digest[:16]}"


@contextmanager
def filled_once(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which is renamed to `folder` at the end of the block.

    If the block raises, the temporary folder is removed. If another process has made `folder` meanwhile, that one is
    kept, because the content is the same.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_images(
    folder: Path, labels: NDArray[np.int64], shape: tuple[int, ...], chunks: Iterable[NDArray[np.uint8]]
) -> str:
    """Write the arrays of a split into `folder`.

    Args:
        labels: (N,) int64.
        shape: (N, H, W, 3), shape of the images.
        chunks: the images in order, in parts.

    Returns:
        SHA-256 of the labels and pixels, in hexadecimal.
    """
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    digest = hashlib.sha256(labels.tobytes())
    start = 0
    for chunk in chunks:
        images[start : start + len(chunk)] = chunk
        start += len(chunk)
        digest.update(np.ascontiguousarray(chunk).reshape(-1).data)
    images.flush()
    np.save(folder / "labels.npy", labels, allow_pickle=False)
    return digest.hexdigest()


def _decode(folder: Path, source: Source, image_size: int, show_progress: bool) -> None:
    """Decode all images of `source` into `folder`."""
    n_images = len(source.labels)
    total, total_of_squares = np.zeros(3), np.zeros(3)

    def measured() -> Iterator[NDArray[np.uint8]]:
        for chunk in source.chunks():
            scaled = chunk.reshape(-1, 3) / 255.0
            np.add(total, scaled.sum(axis=0), out=total)
            np.add(total_of_squares, np.square(scaled).sum(axis=0), out=total_of_squares)
            yield chunk

    chunks = track(
        measured(),
        f"decoding {n_images:,} images",
        total=math.ceil(n_images / images_per_chunk(image_size)),
        console=Console(stderr=True),
        transient=True,
        disable=not show_progress,
    )
    shape = (n_images, image_size, image_size, 3)
    content_sha256 = write_images(folder, source.labels, shape, chunks)
    n_pixels = n_images * image_size**2
    mean = total / n_pixels
    std = np.sqrt(np.maximum(total_of_squares / n_pixels - mean**2, 1e-12))
    mean_used, std_used = source.statistics or (tuple(mean.tolist()), tuple(std.tolist()))
    Description(
        shape=shape, class_names=source.class_names, mean=mean_used, std=std_used, content_sha256=content_sha256
    ).write(folder)
