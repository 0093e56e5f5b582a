"""Decoded images on disk: one uint8 array a split, memory-mapped by every process of a machine."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from spaces import Dataset, InputError
from trainable.files import write_json
from trainable.sources import CHUNK_IMAGES, Source, Split, open_source

# Part of every fingerprint: raise it when decoding changes.
DECODER_VERSION = 1


@dataclass(frozen=True)
class DecodedSet:
    """One split, decoded.

    Attributes:
        images: (N, H, W, 3) uint8 RGB, memory-mapped and read-only.
        labels: (N,) int64, indices into `class_names`.
        class_names: in the order of the labels.
        mean, std: per channel, RGB, for pixels scaled to 0 to 1.
        content_sha256: of the pixels and labels, in hexadecimal.
        folder: where it lies; `open_decoded` opens it again in any process of this machine.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    content_sha256: str
    folder: Path

    @property
    def image_size(self) -> int:
        return int(self.images.shape[1])


def cache_root() -> Path:
    """`$DEPTHWISE_SEARCH_CACHE`, or `depthwise-search` in the user's cache folder."""
    own = os.environ.get("DEPTHWISE_SEARCH_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthwise-search"


def decode_once(dataset: Dataset, split: Split, show_progress: bool = False) -> DecodedSet:
    """Open a split from the cache, decoding it first if it is not there yet.

    Raises:
        InputError: the data set is not there or not usable.
    """
    source = open_source(dataset, split)
    folder = cache_root() / _fingerprint(source, dataset, split)
    if not folder.is_dir():
        with filled_once(folder) as temporary:
            _write_arrays(temporary, source, dataset.image_size, show_progress)
    return open_decoded(folder)


def open_decoded(folder: Path) -> DecodedSet:
    """Map a cached split into memory.

    Raises:
        InputError: the folder is damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        if images.shape != tuple(meta["shape"]) or images.dtype != np.uint8 or len(labels) != len(images):
            raise ValueError("its arrays do not fit its description")
        return DecodedSet(
            images=images,
            labels=labels,
            class_names=tuple(meta["class_names"]),
            mean=tuple(meta["mean"]),
            std=tuple(meta["std"]),
            content_sha256=meta["content_sha256"],
            folder=folder,
        )
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(
            f"{folder}: is a damaged image cache ({error}). Remove that folder; it is made anew."
        ) from None


def find_training_images(content_sha256: str, image_size: int) -> DecodedSet | None:
    """The training images with these pixels and labels, if this machine has decoded them; nothing else is opened.

    Args:
        content_sha256: as `DecodedSet` has it.
        image_size: side in pixels.
    """
    for folder in sorted(cache_root().glob(f"*-train-{image_size}px-*")):
        with contextlib.suppress(InputError):  # a damaged one is for whoever trains on it
            decoded = open_decoded(folder)
            if decoded.content_sha256 == content_sha256:
                return decoded
    return None


def _fingerprint(source: Source, dataset: Dataset, split: Split) -> str:
    identity = [DECODER_VERSION, dataset.name, split, dataset.image_size, source.identity]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return f"{dataset.name}-{split}-{dataset.image_size}px-{digest[:16]}"


@contextmanager
def filled_once(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`, which becomes it when the block ends well, and is removed when not.

    Where another process was faster, its folder stays: the content is the same.
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


def _tracked(source: Source, show_progress: bool) -> Iterable[NDArray[np.uint8]]:
    if not show_progress:
        return source.chunks()
    n_images = len(source.labels)
    return track(
        source.chunks(),
        f"decoding {n_images:,} images",
        total=math.ceil(n_images / CHUNK_IMAGES),
        console=Console(stderr=True),
        transient=True,
    )


def _write_arrays(folder: Path, source: Source, image_size: int, show_progress: bool) -> None:
    shape = (len(source.labels), image_size, image_size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    digest = hashlib.sha256(source.labels.tobytes())
    total = np.zeros(3)
    total_of_squares = np.zeros(3)
    start = 0
    for chunk in _tracked(source, show_progress):
        images[start : start + len(chunk)] = chunk
        start += len(chunk)
        digest.update(chunk.tobytes())
        scaled = chunk.reshape(-1, 3) / 255.0
        total += scaled.sum(axis=0)
        total_of_squares += np.square(scaled).sum(axis=0)
    images.flush()
    n_pixels = shape[0] * image_size**2
    mean = total / n_pixels
    std = np.sqrt(np.maximum(total_of_squares / n_pixels - mean**2, 1e-12))
    measured = (tuple(mean.tolist()), tuple(std.tolist()))
    mean_used, std_used = source.statistics or measured
    np.save(folder / "labels.npy", source.labels, allow_pickle=False)
    meta = {
        "shape": shape,
        "class_names": source.class_names,
        "mean": mean_used,
        "std": std_used,
        "content_sha256": digest.hexdigest(),
    }
    write_json(folder / "meta.json", meta)
