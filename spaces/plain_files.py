"""Opens files of untrusted folders: regular files only, up to a given size.

A folder from another user can hold symbolic links to the reader's own files, FIFOs without a writer, and endless
files. The functions here refuse them, and never wait for them.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from spaces.errors import InputError

# Deepest allowed nesting, far above that of Ray's folders; removing a folder recurses once per level.
MAX_DEPTH = 32
MIB = 2**20

Mode = Literal["rb", "r+b", "ab", "a+b"]

_FLAGS: dict[Mode, int] = {
    "rb": os.O_RDONLY,
    "r+b": os.O_RDWR,
    "ab": os.O_WRONLY | os.O_APPEND | os.O_CREAT,
    "a+b": os.O_RDWR | os.O_APPEND | os.O_CREAT,
}
_LINK = "is a symbolic link, but must be a file of its own. Replace it by what it stands for, or remove it."


def open_plain(path: Path, mode: Mode = "rb", follow_links: bool = False) -> IO[Any]:
    """Open a regular file without blocking. Writing modes refuse files with several hard links.

    Args:
        path: file to open. Links in its parent folders are followed; check untrusted folders first.
        mode: mode of `open`.
        follow_links: whether `path` itself may be a symbolic link, for paths that the user named.

    Raises:
        InputError: the path is a symbolic link, FIFO, socket, device or folder.
        OSError: the file does not exist or cannot be opened.
    """
    # Without O_NONBLOCK, opening a FIFO waits for a process at its other end.
    flags = _FLAGS[mode] | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path}: {_LINK}") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise InputError(f"{path}: {_other_kind(path.stat().st_mode)}") from None
        raise
    status, problem = os.fstat(handle), ""
    if not stat.S_ISREG(status.st_mode):
        problem = _other_kind(status.st_mode)
    elif mode != "rb" and status.st_nlink > 1:
        problem = (
            f"has {status.st_nlink} names (hard links), and writing here would change what the others name. "
            f"Replace it by a copy of itself."
        )
    if problem:
        os.close(handle)
        raise InputError(f"{path}: {problem}")
    return os.fdopen(handle, mode)


def read_plain(path: Path, max_bytes: int, follow_links: bool = False) -> bytes:
    """Read a regular file.

    Raises:
        InputError: the file is not regular (see `open_plain`), or is larger than `max_bytes`.
        OSError: the file cannot be read.
    """
    with open_plain(path, follow_links=follow_links) as file:
        # Python allocates as much memory as it is asked to read. Files in /proc report a size of 0.
        size = os.fstat(file.fileno()).st_size or max_bytes
        content: bytes = file.read(min(size, max_bytes) + 1)
    if len(content) > max_bytes:
        limit = f"{max_bytes / MIB:g} MiB" if max_bytes >= MIB else f"{max_bytes / 1024:g} KiB"
        raise InputError(f"{path}: is over {limit}, but must be smaller: no file of its kind is so large.")
    return content


def must_hold_plain_files(folder: Path) -> None:
    """Raise InputError if `folder` contains, at any depth, anything but folders and regular files.

    Writing or removing files in a folder that passed cannot affect other folders. `folder` may be a symbolic link.
    """
    waiting = [(folder, 1)]
    while waiting:
        place, depth = waiting.pop()
        for path, mode in _entries(place):
            if stat.S_ISDIR(mode):
                if depth >= MAX_DEPTH:
                    raise InputError(f"{path}: is nested over {MAX_DEPTH} deep, which no search makes. Remove it.")
                waiting.append((path, depth + 1))
            elif not stat.S_ISREG(mode):
                raise InputError(f"{path}: {_other_kind(mode)}")


def _entries(folder: Path) -> Iterator[tuple[Path, int]]:
    """Entries of a folder with their modes; entries that are removed meanwhile are skipped."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mode


def _other_kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return _LINK
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}
    return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}, but must be a plain file. Remove it."
