"""Opens files that somebody else may have made: plain ones only, and no more of them than was agreed.

A folder from elsewhere can hold symbolic links to files of its reader, FIFOs that nobody writes to, and files
without an end. Nothing of that is read, written or waited for.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

from spaces.errors import InputError

# Far more than Ray or we make; removing a folder recurses once a level.
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
    """Open a plain file, never waiting for it; writing modes refuse files that have a second name.

    Args:
        path: links in its folders are followed: where those may come from elsewhere, look at them first.
        mode: as `open` has it.
        follow_links: whether `path` itself may be a symbolic link, as it may where the user named it.

    Raises:
        InputError: it is a symbolic link, FIFO, socket, device or folder.
        OSError: it is not there, or must not be opened.
    """
    # Without O_NONBLOCK, to open a FIFO is to wait for somebody at its other end.
    flags = _FLAGS[mode] | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError(f"{path}: {_LINK}") from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise InputError(f"{path}: {_other_kind(path.stat().st_mode)}") from None
        raise
    status = os.fstat(handle)
    problem = _problem(status, writing=mode != "rb")
    if problem:
        os.close(handle)
        raise InputError(f"{path}: {problem}")
    return os.fdopen(handle, mode)


def read_plain(path: Path, max_bytes: int, follow_links: bool = False) -> bytes:
    """The content of a plain file.

    Raises:
        InputError: it is not plain (see `open_plain`), or has more than `max_bytes`.
        OSError: it cannot be read.
    """
    with open_plain(path, follow_links=follow_links) as file:
        # Python excludes as much memory as it is asked to read; the files of /proc say that they are empty.
        size = os.fstat(file.fileno()).st_size or max_bytes
        content: bytes = file.read(min(size, max_bytes) + 1)
    if len(content) > max_bytes:
        limit = f"{max_bytes / MIB:g} MiB" if max_bytes >= MIB else f"{max_bytes / 1024:g} KiB"
        raise InputError(f"{path}: is over {limit}, but must be smaller: no file of its kind is so large.")
    return content


def must_hold_plain_files(folder: Path) -> None:
    """Raise InputError if `folder` holds, however deep, anything but folders and plain files.

    What is written or removed in a folder that passed lies in that folder; it may itself be a symbolic link.
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
    """What lies in a folder, with its mode; what is removed meanwhile is passed over."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                yield Path(entry.path), entry.stat(follow_symlinks=False).st_mode


def _problem(status: os.stat_result, writing: bool) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return _other_kind(status.st_mode)
    if writing and status.st_nlink > 1:
        return (
            f"has {status.st_nlink} names (hard links), and writing here would change what the others name. "
            f"Replace it by a copy of itself."
        )
    return None


def _other_kind(mode: int) -> str:
    if stat.S_ISLNK(mode):
        return _LINK
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder"}
    return f"is a {kinds.get(stat.S_IFMT(mode), 'device')}, but must be a plain file. Remove it."
