"""The journal: an append-only file of events, from which all other state of an experiment is derived.

Ray's snapshots are not used: they do not contain ASHA's rungs, a truncated snapshot silently starts a new search, and
restoring one unpickles it. One JSON object per line survives a crash at any byte. The last key of each line is its
checksum. A backup, at most one line behind, replaces a damaged file.
"""

import errno
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from search.experiment.events import Event, event_as_dict, event_from_dict
from search.experiment.history import History
from search.experiment.state_files import (
    BACKUP_FOLDER,
    CHECKSUM_KEY,
    backup_of,
    first_problem,
    json_must_match,
    json_with_checksum,
    set_damaged_aside,
)
from spaces.errors import InputError
from spaces.plain_files import MIB, open_plain
from spaces.printable import warn_once
from trainable.files import replacing, sync

# A journal of 100,000 trials × 27 epochs has about 600 MB.
MAX_LINE_BYTES = MIB
MAX_BYTES = 2048 * MIB


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Made once: `json.loads` would make a decoder for each line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def event_line(event: Event) -> bytes:
    """The line of an event in a journal, with its checksum as the last key."""
    return json_with_checksum(json.dumps(event_as_dict(event), allow_nan=False)).encode()


def event_from_line(line: bytes) -> Event:
    """The inverse of `event_line`; lines without a checksum, of earlier versions, are accepted.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: the line is not an event, or is damaged.
    """
    json_must_match(line)
    content = _DECODER.decode(line.decode())
    content.pop(CHECKSUM_KEY, None)
    return event_from_dict(content)


class Journal:
    """Appends events to a file and its backup; an event is on the disk when `append` returns.

    Only the process that holds the lock of the experiment may open it. Opening repairs the file after a crash: a
    half-written last line is cut off, and of file and backup, the one with more events replaces the other.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._copy = backup_of(path)
        better = _better_reading(path)
        if better.path != path and path.exists():
            set_damaged_aside(path)
        _keep_valid_lines(better, path)
        _keep_valid_lines(better, self._copy)
        self._has_events = better.n_bytes > 0

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


@dataclass(frozen=True, slots=True)
class _Reading:
    """Content of one journal file: the valid lines at its start."""

    path: Path
    history: History = field(default_factory=History)
    n_bytes: int = 0
    n_lines: int = 0
    damage: str | None = None  # problem of the next line; None at the end of the file or at a half-written last line
    inode: int = 0


def read_history(path: Path) -> History:
    """The history from a journal; from its backup, with a warning, if it is damaged; empty without a journal.

    Raises:
        InputError: a line is damaged, and the backup has no more events; or a file is not a regular file.
    """
    return _better_reading(path).history


def _better_reading(path: Path) -> _Reading:
    copy = backup_of(path)
    # Read before the file: while a search appends, the file is then never behind its backup.
    copy_bytes = copy.stat().st_size if copy.exists() else 0
    own = _read(_Reading(path))
    if own.damage is None and own.n_bytes >= copy_bytes:
        return own
    copied = _read(_Reading(copy))
    if own.damage is not None and copied.damage is not None:
        # Each may have events that the other lost.
        raise InputError(f"{own.damage}, nor is {copied.damage}. Make one whole by hand from the other's lines.")
    if copied.n_bytes > own.n_bytes or (own.damage and copied.n_bytes == own.n_bytes > 0):
        wrong = own.damage or (f"{path}: ends too early" if path.exists() else f"{path}: is missing")
        warn_once(f"{wrong}; its copy {BACKUP_FOLDER}/{copy.name} is used.")
        return copied
    if own.damage is not None:
        raise InputError(f"{own.damage}. Restore the file from a copy, or remove that line and those after it.")
    return own


def _read(before: _Reading) -> _Reading:
    """Read the lines after those of `before`, and add them to its history."""
    path, history, n_bytes, n_lines, damage = before.path, before.history, before.n_bytes, before.n_lines, None
    if not os.path.lexists(path):
        return before
    with open_plain(path) as file:
        status = os.fstat(file.fileno())
        if status.st_size > MAX_BYTES:
            too_large = f"{path}: is over {MAX_BYTES // MIB:,} MiB, which none of ours is"
            return _Reading(path, history, n_bytes, n_lines, too_large)
        file.seek(n_bytes)
        while line := file.readline(MAX_LINE_BYTES + 1):
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError("it is too long")
                if not line.endswith(b"\n"):
                    break
                history.apply(event_from_line(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                reason = first_problem(error) if isinstance(error, ValidationError) else f"{error!s:.200}"
                damage = f"{path}:{n_lines + 1}: is not an event of a search ({type(error).__name__}: {reason})"
                break
            n_bytes, n_lines = n_bytes + len(line), n_lines + 1
    return _Reading(path, history, n_bytes, n_lines, damage, status.st_ino)


class JournalFollower:
    """Like `read_history`, for a journal that another process writes: later calls read only the added lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading: _Reading | None = None
        self._seen = (0, 0)

    def history(self) -> History:
        status = self._path.lstat() if os.path.lexists(self._path) else None
        seen = (status.st_ino, status.st_size) if status else (0, 0)
        if self._reading is None or seen != self._seen:
            self._reading = self._read_on(*seen)
            self._seen = seen
        return self._reading.history

    def _read_on(self, inode: int, size: int) -> _Reading:
        before = self._reading
        if before and (before.path, before.inode) == (self._path, inode) and size >= before.n_bytes:
            reading = _read(before)
            if reading.damage is None and reading.inode == inode:
                return reading
        return _better_reading(self._path)


def _keep_valid_lines(good: _Reading, path: Path) -> None:
    """Give `path`, the file of `good` or another, the valid lines of `good` as its content."""
    is_there = path.exists()
    if path == good.path:
        if is_there and path.stat().st_size > good.n_bytes:
            with open_plain(path, "r+b") as file:
                file.truncate(good.n_bytes)
    elif good.n_bytes if not is_there else not _has_valid_lines_only(path, good):
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as temporary, open_plain(good.path) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target)
            target.truncate(good.n_bytes)


def _has_valid_lines_only(path: Path, good: _Reading) -> bool:
    if path.stat().st_size != good.n_bytes:
        return False
    with open_plain(path) as one, open_plain(good.path) as other:
        same: bool = one.read() == other.read(good.n_bytes)
    return same
