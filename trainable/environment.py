"""Environment variables: the cache folder, glibc's allocator, and variables that are set for the length of a block."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# glibc reads these variables when a process starts. They make it keep freed memory for the next training step;
# otherwise it returns the memory to the kernel, which clears every page again. 32 MiB is the largest threshold that
# glibc accepts. Other C libraries ignore the variables.
ALLOCATOR_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}


def cache_root() -> Path:
    """`$DEPTHWISE_SEARCH_CACHE`, or `depthwise-search` in the user's cache folder."""
    own = os.environ.get("DEPTHWISE_SEARCH_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthwise-search"


@contextmanager
def environment_with(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block; after it, the whole environment is as it was before."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before.items() - os.environ.items())
