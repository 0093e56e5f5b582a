"""URLs of object stores and other remote storage, accessed through pyarrow."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spaces import InputError
from spaces.errors import first_line

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem


def is_url(text: str) -> bool:
    """Whether `text` has a scheme, such as `s3://`."""
    return "://" in text


def below(url: str, *parts: str) -> str:
    """Append path `parts` to `url`. A query after `?`, such as an endpoint, stays at the end."""
    base, mark, query = url.partition("?")
    return "/".join([base.rstrip("/"), *parts]) + mark + query


def opened(url: str) -> tuple["FileSystem", str]:
    """Filesystem of `url`, and the path on it.

    Raises:
        InputError: pyarrow knows no filesystem for the URL, or cannot reach it.
    """
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(url)
    except (OSError, ValueError, ImportError) as error:
        reason = first_line(error).rstrip(".")
        raise InputError(
            f"{url}: cannot be opened ({reason}). Give a URL that pyarrow knows (s3://, gs://, abfs://, hdfs://, "
            f"file:///, or fsspec+NAME:// for what fsspec knows), and what it needs to sign in."
        ) from None
    return filesystem, path


@contextmanager
def fetched(url: str) -> Iterator[Path]:
    """Copy the folder at `url` to a temporary folder of this machine, which exists for the block only.

    Raises:
        InputError: the folder cannot be read.
    """
    from pyarrow.fs import copy_files

    filesystem, path = opened(url)
    with tempfile.TemporaryDirectory(prefix="dws-") as folder:
        try:
            copy_files(path, folder, source_filesystem=filesystem)
        except OSError as error:
            raise InputError(f"{url}: cannot be read ({first_line(error)}).") from None
        yield Path(folder)
