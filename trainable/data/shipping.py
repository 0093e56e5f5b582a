"""Sends decoded images to other machines in parts, and stores them once in each machine's cache."""

import fcntl
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spaces import InputError
from trainable.data.cache import DecodedSet, Description, filled_once, open_intact
from trainable.environment import cache_root

# Bytes of one part. A receiving machine holds one part in memory at a time.
PART_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PackedImages:
    """A decoded split without its pixels.

    Attributes:
        name: name of its folder in a cache; the name holds a fingerprint, so equal names mean equal images.
        shape: (N, H, W, 3), shape of the pixels.
        labels: (N,) int64, indices into `class_names`.
        class_names: names of the classes, in the order of the labels.
        mean, std: mean and standard deviation per channel, RGB, for pixels scaled to 0 to 1.
        content_sha256: SHA-256 of the labels and pixels, in hexadecimal.
    """

    name: str
    shape: tuple[int, int, int, int]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    content_sha256: str


def pack(decoded: DecodedSet) -> PackedImages:
    """Describe `decoded` for a machine that receives its parts."""
    return PackedImages(
        name=decoded.folder.name,
        shape=decoded.images.shape,
        labels=decoded.labels,
        class_names=decoded.class_names,
        mean=decoded.mean,
        std=decoded.std,
        content_sha256=decoded.content_sha256,
    )


def parts_of(decoded: DecodedSet, part_bytes: int = PART_BYTES) -> Iterator[NDArray[np.uint8]]:
    """Copy the pixels of `decoded` in order, in parts of at most `part_bytes`, but at least one image each."""
    n_images = max(1, part_bytes // decoded.images[:1].nbytes)
    for start in range(0, len(decoded.images), n_images):
        yield np.array(decoded.images[start : start + n_images])


def unpack_once(packed: PackedImages, parts: Iterable[NDArray[np.uint8]]) -> Path:
    """Store images in this machine's cache, unless the cache has them already.

    Processes of one machine wait for the first of them.

    Args:
        packed: description and labels of the images.
        parts: pixels in order; consumed only if the images are not in the cache.

    Returns:
        Folder of the images, for `open_decoded`.

    Raises:
        InputError: the received images or those in the cache differ from `packed`.
    """
    folder = cache_root() / packed.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(folder.with_name(f".{folder.name}.lock")):
        cached = open_intact(folder)
        if cached is None:
            with filled_once(folder) as temporary:
                _write(temporary, packed, parts)
    there = cached.content_sha256 if cached else packed.content_sha256
    if there != packed.content_sha256:
        raise InputError(
            f"{folder}: holds other images (sha256 {there[:12]}…) than the search has "
            f"({packed.content_sha256[:12]}…). Remove that folder; it is made anew."
        )
    return folder


def _write(folder: Path, packed: PackedImages, parts: Iterable[NDArray[np.uint8]]) -> None:
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=packed.shape)
    digest = hashlib.sha256(packed.labels.tobytes())
    start = 0
    for part in parts:
        images[start : start + len(part)] = part
        start += len(part)
        digest.update(np.ascontiguousarray(part).reshape(-1).data)
    images.flush()
    if start != len(images) or digest.hexdigest() != packed.content_sha256:
        raise InputError(f"{packed.name}: its images were damaged on the way to this machine. Start the search again.")
    np.save(folder / "labels.npy", packed.labels, allow_pickle=False)
    description = Description(
        shape=packed.shape,
        class_names=packed.class_names,
        mean=packed.mean,
        std=packed.std,
        content_sha256=packed.content_sha256,
    )
    description.write(folder)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a file lock for the block. The kernel releases it when the process ends, even after a crash."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
