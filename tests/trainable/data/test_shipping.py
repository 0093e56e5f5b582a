"""Images on their way to another machine's cache: whole, once, and the same."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from spaces import Dataset, InputError
from trainable.data.cache import DecodedSet, decode_once, open_decoded
from trainable.data.shipping import pack, parts_of, unpack_once

IMAGE_BYTES = 17 * 17 * 3


@pytest.fixture(scope="module")
def decoded() -> DecodedSet:
    return decode_once(Dataset(name="digits", image_size=17), "test")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of another machine."""
    monkeypatch.setenv("DEPTHWISE_SEARCH_CACHE", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def test_another_machine_gets_the_same_images_under_the_same_name(decoded: DecodedSet, elsewhere: Path) -> None:
    folder = unpack_once(pack(decoded), parts_of(decoded, part_bytes=100 * IMAGE_BYTES))
    assert folder == elsewhere / decoded.folder.name
    there = open_decoded(folder)
    assert np.array_equal(there.images, decoded.images)
    assert np.array_equal(there.labels, decoded.labels)
    assert (there.class_names, there.mean, there.std) == (decoded.class_names, decoded.mean, decoded.std)
    assert there.content_sha256 == decoded.content_sha256
    assert [path.name for path in elsewhere.iterdir() if not path.name.endswith(".lock")] == [folder.name]


@pytest.mark.parametrize("part_bytes", [1, 100 * IMAGE_BYTES, 2**40])
def test_parts_are_bounded_and_leave_nothing_out(decoded: DecodedSet, part_bytes: int) -> None:
    parts = list(parts_of(decoded, part_bytes)) if part_bytes > 1 else [next(parts_of(decoded, part_bytes))]
    assert all(part.nbytes <= max(part_bytes, IMAGE_BYTES) for part in parts)
    if part_bytes > 1:
        assert sum(map(len, parts)) == len(decoded.images)


def test_workers_of_one_machine_fetch_once(decoded: DecodedSet, elsewhere: Path) -> None:
    fetched = []

    def fetch() -> None:
        def parts() -> Iterator[NDArray[np.uint8]]:
            fetched.append(1)
            yield from parts_of(decoded)

        unpack_once(pack(decoded), parts())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == 1


@pytest.mark.parametrize("damage", ["a pixel", "a part missing"])
def test_damage_on_the_way_is_noticed_and_leaves_nothing(decoded: DecodedSet, elsewhere: Path, damage: str) -> None:
    parts = list(parts_of(decoded, 100 * IMAGE_BYTES))
    if damage == "a pixel":
        parts[3][7, 3, 3, 0] ^= 1
    else:
        del parts[-1]
    with pytest.raises(InputError, match="damaged on the way"):
        unpack_once(pack(decoded), parts)
    assert not [path for path in elsewhere.iterdir() if path.is_dir()]


def test_damaged_images_of_that_name_are_replaced_by_those_that_came(decoded: DecodedSet, elsewhere: Path) -> None:
    folder = unpack_once(pack(decoded), parts_of(decoded))
    content = bytearray((folder / "images.npy").read_bytes())
    content[5000] ^= 1
    (folder / "images.npy").write_bytes(content)
    assert unpack_once(pack(decoded), parts_of(decoded)) == folder
    np.testing.assert_array_equal(open_decoded(folder).images, decoded.images)


def test_a_cache_with_other_images_under_that_name_is_refused(decoded: DecodedSet, elsewhere: Path) -> None:
    unpack_once(pack(decoded), parts_of(decoded))
    packed = pack(decoded)
    other = replace(packed, description=packed.description.model_copy(update={"content_sha256": "0" * 64}))
    with pytest.raises(InputError, match="holds other images"):
        unpack_once(other, parts_of(decoded))
