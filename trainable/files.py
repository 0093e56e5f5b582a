"""Atomic writing of files: after a crash, a file has its old or its new content, never a part."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spaces.printable import json_text


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` is unchanged. After the block, the new file survives
    a power failure.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        # mkstemp creates private files; give them the usual permissions.
        temporary.chmod(0o644)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically.

    Raises:
        ValueError: `content` holds NaN or an infinity, which JSON cannot represent.
    """
    write_text(path, json_text(content) + "\n")


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of files, to the disk.

    Renaming a file changes its folder, so the folder must be flushed too for the new name to survive a power failure.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not support fsync for folders; they write names immediately.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)
