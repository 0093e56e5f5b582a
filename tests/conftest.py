"""Fixtures that several files share. No test touches the user's cache, the network or the results folder."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spaces import Dataset, Space, load_space

# A search that takes seconds an epoch less than the quickstart: the same code on fewer, smaller images.
TINY = (
    "dataset.image_size=17",
    "dataset.train_limit=400",
    "training.batch_size=8",
    "training.max_epochs=3",
    "search.grace_epochs=1",
    "search.trials=8",
    "confirm.top=0",
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by the number of tests with a real Ray cluster (these take longest; two processes share the files)."""
    n_cluster = Counter(item.path for item in items if item.get_closest_marker("cluster"))
    items.sort(key=lambda item: -n_cluster[item.path])


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = os.environ.get("DEPTHWISE_SEARCH_CACHE")
    os.environ["DEPTHWISE_SEARCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["DEPTHWISE_SEARCH_CACHE"]
    else:
        os.environ["DEPTHWISE_SEARCH_CACHE"] = before


@pytest.fixture(scope="session")
def tiny_digits() -> Dataset:
    return Dataset(name="digits", image_size=17, train_limit=200)


@pytest.fixture(scope="session")
def tiny_space() -> Space:
    return load_space("quickstart", TINY)


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `python -m MODULE ARGUMENTS…` as a user would, from another folder than the checkout."""

    def run_module(module: str, *arguments: str, cwd: Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False)

    return run_module


def set_options(*overrides: str) -> list[str]:
    return [word for override in overrides for word in ("--set", override)]
