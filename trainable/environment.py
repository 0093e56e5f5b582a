"""Environment variables: the cache folder, and variables that are set for the length of a block."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """`$DEPTHWISE_SEARCH_CACHE`, or `depthwise-search` in the user's cache folder."""
    own = os.environ.get("DEPTHWISE_SEARCH_CACHE")
    if own:
        return Path(own).expanduser().resolve()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthwise-search"


@contextmanager
def environment_with(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block, and restore their previous values after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
