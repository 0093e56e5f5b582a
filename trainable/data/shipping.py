"""Sends decoded images to other machines in parts, and stores them once in each machine's cache."""

import fcntl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spaces import InputError
from trainable.data.cache import DecodedSet, Description, filled_once, open_intact, write_images
from trainable.environment import cache_root

# Bytes of one part. A receiving machine holds one part in memory at a time.
PART_BYTES = 64 * 2**20


@dataclass(frozen=True)
class PackedImages:
    """A decoded split without its pixels.

    Attributes:
        name: name of its folder in a cache; the name holds a fingerprint, so equal names mean equal images.
        description: shape, classes, statistics and checksum.
        labels: (N,) int64, indices into the class names.
    """

    name: str
    description: Description
    labels: NDArray[np.int64]


def pack(decoded: DecodedSet) -> PackedImages:
    """Describe `decoded` for a machine that receives its parts."""
    return PackedImages(decoded.folder.name, Description.read(decoded.folder), decoded.labels)


def parts_of(decoded: DecodedSet, part_bytes: int = PART_BYTES) -> Iterator[NDArray[np.uint8]]:
    """Copy the pixels of `decoded` in order, in parts of at most `part_bytes`, but at least one image each."""
    n_images = max(1, part_bytes // decoded.images[:1].nbytes)
    for start in range(0, len(decoded.images), n_images):
        yield np.array(decoded.images[start : start + n_images])


def unpack_once(packed: PackedImages, parts: Iterable[NDArray[np.uint8]]) -> Path:
    """Store images in this machine's cache, unless it has them already; its processes wait for the first of them.

    Args:
        parts: pixels in order; consumed only if the images are not in the cache.

    Returns:
        Folder of the images, for `open_decoded`.

    Raises:
        InputError: the received images or those in the cache differ from `packed`.
    """
    folder = cache_root() / packed.name
    wanted = packed.description.content_sha256
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel releases it when the process ends, even after a crash
        cached = open_intact(folder)
        if cached is None:
            with filled_once(folder) as temporary:
                if write_images(temporary, packed.labels, packed.description.shape, parts) != wanted:
                    raise InputError(
                        f"{packed.name}: its images were damaged on the way to this machine. Start the search again."
                    )
                packed.description.write(temporary)
    if cached is not None and cached.content_sha256 != wanted:
        raise InputError(
            f"{folder}: holds other images (sha256 {cached.content_sha256[:12]}…) than the search has "
            f"({wanted[:12]}…). Remove that folder; it is made anew."
        )
    return folder
