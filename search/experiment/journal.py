"""The journal: an append-only file of events, from which all other state of an experiment is derived.

Ray's snapshots are not used: they do not contain ASHA's rungs, a truncated snapshot silently starts a new search, and
restoring one unpickles it. One JSON object per line survives a crash at any byte. The last key of each line is its
checksum. A backup, at most one line behind, replaces a damaged file.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from search.experiment.checksums import KEY, json_must_match, json_with_checksum
from search.experiment.events import Event, event_as_dict, event_from_dict
from search.experiment.history import History
from spaces.errors import InputError
from spaces.plain_files import MIB, open_plain
from trainable.files import replacing, sync

# A journal of 100,000 trials × 27 epochs has about 600 MB.
MAX_LINE_BYTES = MIB
MAX_BYTES = 2048 * MIB
BACKUP_FOLDER = ".backup"

Warn = Callable[[str], None]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` would make a decoder for each line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def backup_of(path: Path) -> Path:
    """Path of the backup of a state file.

    Raises:
        InputError: the folder for it is a symbolic link.
    """
    folder = path.parent / BACKUP_FOLDER
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, but must be a folder of its own. Remove it.")
    return folder / path.name


def set_damaged_aside(path: Path) -> Path:
    """Rename a damaged file, to keep its content; returns the new path."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    path.rename(aside)
    sync(aside.parent)
    return aside


def event_line(event: Event) -> bytes:
    """The line of an event in a journal, with its checksum as the last key."""
    return json_with_checksum(json.dumps(event_as_dict(event), allow_nan=False)).encode()


def event_from_line(line: bytes | str) -> Event:
    """The inverse of `event_line`; lines without a checksum, of earlier versions, are accepted.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: the line is not an event, or is damaged.
    """
    json_must_match(line.encode() if isinstance(line, str) else line)
    content = _DECODER.decode(line if isinstance(line, str) else line.decode())
    content.pop(KEY, None)
    return event_from_dict(content)


class Journal:
    """Appends events to a file and its backup; an event is on the disk when `append` returns.

    Only the process that holds the lock of the experiment may open it. Opening repairs the file after a crash: a
    half-written last line is cut off, and of file and backup, the one with more events replaces the other.

    Args:
        path: of the journal; created with the first event.
        tell: called with a message if the backup had to be used.
    """

    def __init__(self, path: Path, tell: Warn = lambda line: None) -> None:
        self.path = path
        self._has_events = False
        self._copy = backup_of(path)
        self._mend(tell)

    def append(self, event: Event) -> None:
        line = event_line(event)
        if self._has_events and not self.path.exists():
            # A new file would start in the middle of the search.
            raise FileNotFoundError(errno.ENOENT, "was removed while the search ran", str(self.path))
        with open_plain(self.path, "ab") as file:
            is_new = os.fstat(file.fileno()).st_size == 0
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.path.parent)
        self._has_events = True
        # After the file itself: a reader of both must not find the backup ahead of an intact file.
        self._copy.parent.mkdir(exist_ok=True)
        with open_plain(self._copy, "ab") as file:
            file.write(line)

    def _mend(self, tell: Warn) -> None:
        better = _better_reading(self.path, tell)
        if better.path != self.path and self.path.exists():
            set_damaged_aside(self.path)
        _keep_first_bytes(better, self.path)
        _keep_first_bytes(better, self._copy)
        self._has_events = better.n_bytes > 0


@dataclass(frozen=True, slots=True)
class _Reading:
    """Content of one journal file.

    Attributes:
        path: path of the file.
        history: history from the valid lines at its start.
        n_bytes: number of bytes of the valid lines.
        damage: problem of the next line; None at the end of the file, and if only a half-written last line follows.
        n_lines: number of lines that were read.
        inode: inode of the file.
    """

    path: Path
    history: History
    n_bytes: int
    damage: str | None
    n_lines: int = 0
    inode: int = 0


def read_history(path: Path, tell: Warn = lambda line: None) -> History:
    """The history from a journal, empty without one; changes no file.

    Args:
        path: of the journal; if it is damaged, its backup is read.
        tell: called with a message if the backup had to be used.

    Raises:
        InputError: a line is damaged, and the backup has no more events; or a file is not a regular file.
    """
    return _better_reading(path, tell).history


def _better_reading(path: Path, tell: Warn) -> _Reading:
    copy = backup_of(path)
    # Read before the file: while a search appends, the file is then never behind its backup.
    copy_bytes = copy.stat().st_size if copy.exists() else 0
    own = _read(path)
    if own.damage is None and own.n_bytes >= copy_bytes:
        return own
    copied = _read(copy)
    if own.damage is not None and copied.damage is not None:
        # Each may have events that the other lost.
        raise InputError(f"{own.damage}, nor is {copied.damage}. Make one whole by hand from the other's lines.")
    if copied.n_bytes > own.n_bytes or (own.damage and copied.n_bytes == own.n_bytes > 0):
        wrong = own.damage or (f"{path}: ends too early" if path.exists() else f"{path}: is missing")
        tell(f"{wrong}; its copy {BACKUP_FOLDER}/{copy.name} is used.")
        return copied
    if own.damage is not None:
        raise InputError(f"{own.damage}. Restore the file from a copy, or remove that line and those after it.")
    return own


def _read(path: Path, so_far: _Reading | None = None) -> _Reading:
    """Content of a file; with `so_far`, only later lines are read, and added to its history."""
    history = so_far.history if so_far else History()
    n_bytes, number = (so_far.n_bytes, so_far.n_lines) if so_far else (0, 0)
    if not os.path.lexists(path):
        return _Reading(path, history, n_bytes, None)
    with open_plain(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > MAX_BYTES:
            return _Reading(path, history, n_bytes, f"{path}: is over {MAX_BYTES // MIB:,} MiB, which none of ours is")
        file.seek(n_bytes)
        damage = None
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError("it is too long")
                if not line.endswith(b"\n"):
                    number -= 1
                    break
                history.apply(event_from_line(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                damage = f"{path}:{number}: is not an event of a search ({type(error).__name__}: {str(error)[:200]})"
                break
            n_bytes += len(line)
    return _Reading(path, history, n_bytes, damage, number, status.st_ino)


class JournalFollower:
    """Reads a journal that another process writes: first the whole file, later only the added lines.

    Args:
        path: of the journal; if it is damaged, its backup is read.
        tell: called with a message if the backup had to be used.
    """

    def __init__(self, path: Path, tell: Warn = lambda line: None) -> None:
        self._path = path
        self._tell = tell
        self._reading: _Reading | None = None
        self._seen = (0, 0)

    def history(self) -> History:
        """All trials so far.

        Raises:
            InputError: as for `read_history`.
        """
        status = self._path.lstat() if os.path.lexists(self._path) else None
        seen = (status.st_ino, status.st_size) if status else (0, 0)
        if self._reading is None or seen != self._seen:
            self._reading = self._read_on(*seen)
            self._seen = seen
        return self._reading.history

    def _read_on(self, inode: int, size: int) -> _Reading:
        so_far = self._reading
        is_same = so_far is not None and so_far.path == self._path and so_far.inode == inode
        if so_far and is_same and so_far.damage is None and size >= so_far.n_bytes:
            reading = _read(self._path, so_far)
            if reading.damage is None and reading.inode == inode:
                return reading
        return _better_reading(self._path, self._tell)


def _keep_first_bytes(good: _Reading, path: Path) -> None:
    """Reduce `path` to the valid lines, if it has any other content."""
    if path.exists() and path.stat().st_size == good.n_bytes and (path == good.path or _same_bytes(path, good)):
        return
    if path == good.path and path.exists():
        with open_plain(path, "r+b") as file:
            file.truncate(good.n_bytes)
        return
    if not good.n_bytes and not path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    with replacing(path) as temporary, open_plain(good.path) as source, temporary.open("wb") as target:
        shutil.copyfileobj(source, target)
        target.truncate(good.n_bytes)


def _same_bytes(path: Path, good: _Reading) -> bool:
    with open_plain(path) as one, open_plain(good.path) as other:
        same: bool = one.read() == other.read(good.n_bytes)
    return same
