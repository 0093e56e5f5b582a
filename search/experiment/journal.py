"""The journal: an append-only file of events, from which everything else in an experiment is derived.

Ray's own snapshots are not read back: ASHA's rungs are not in them, a truncated one silently starts a
fresh search, and restoring them unpickles. One JSON object a line survives a crash at any byte. Each line's last
key is its checksum; a copy beside the file, a line behind at most, stands in where the file was damaged later.
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

# A journal of 100,000 trials × 27 epochs is about 600 MB; anything over these is not one of ours.
MAX_LINE_BYTES = MIB
MAX_BYTES = 2048 * MIB
BACKUP_FOLDER = ".backup"

Warn = Callable[[str], None]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# `json.loads` would make one for each line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def backup_of(path: Path) -> Path:
    """Where the copy of a state file lies.

    Raises:
        InputError: the folder for it is a symbolic link.
    """
    folder = path.parent / BACKUP_FOLDER
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, but must be a folder of its own. Remove it.")
    return folder / path.name


def set_damaged_aside(path: Path) -> Path:
    """Rename a damaged file out of the way, so that nothing of it is lost; its new path."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
    path.rename(aside)
    sync(aside.parent)
    return aside


def event_line(event: Event) -> bytes:
    """An event's line in a journal, with its checksum as the last key."""
    return json_with_checksum(json.dumps(event_as_dict(event), allow_nan=False)).encode()


def event_from_line(line: bytes | str) -> Event:
    """The inverse of `event_line`; also takes lines without a checksum, as earlier versions wrote them.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RecursionError: it is not an event, or not as it was written.
    """
    json_must_match(line.encode() if isinstance(line, str) else line)
    content = _DECODER.decode(line if isinstance(line, str) else line.decode())
    content.pop(KEY, None)
    return event_from_dict(content)


class Journal:
    """Appends events to a file and its copy; an event is on the disk when `append` returns.

    Must be opened by the one process that holds the experiment. What a crash left is mended first: a half-written
    last line is cut off, and of file and copy the one that has more good events replaces the other.

    Args:
        path: made when the first event comes.
        tell: called with a line where the copy had to be used.
    """

    def __init__(self, path: Path, tell: Warn = lambda line: None) -> None:
        self.path = path
        self._has_events = False
        self._copy = backup_of(path)
        self._mend(tell)

    def append(self, event: Event) -> None:
        line = event_line(event)
        if self._has_events and not self.path.exists():
            # Made anew, it would begin in the middle of the search.
            raise FileNotFoundError(errno.ENOENT, "was removed while the search ran", str(self.path))
        with open_plain(self.path, "ab") as file:
            is_new = os.fstat(file.fileno()).st_size == 0
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.path.parent)
        self._has_events = True
        # Only after the file itself: whoever reads both must never find the copy ahead of an intact file.
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
    """What one file says.

    Attributes:
        path: the file.
        history: of the good lines.
        n_bytes: that they take.
        damage: what is wrong with the line after them; None where only a torn last line follows, or nothing.
        n_lines: that were read.
        inode: of the file.
    """

    path: Path
    history: History
    n_bytes: int
    damage: str | None
    n_lines: int = 0
    inode: int = 0


def read_history(path: Path, tell: Warn = lambda line: None) -> History:
    """All that a journal says; an experiment without one has no trials yet. Changes nothing on the disk.

    Args:
        path: of the journal; its copy is read where it is damaged.
        tell: called with a line where the copy had to be used.

    Raises:
        InputError: a line in the middle is damaged, and the copy has no more; names it. Or a file is not a plain one.
    """
    return _better_reading(path, tell).history


def _better_reading(path: Path, tell: Warn) -> _Reading:
    copy = backup_of(path)
    # Before the file is read: one that is being written is then never behind its copy.
    copy_bytes = copy.stat().st_size if copy.exists() else 0
    own = _read(path)
    if own.damage is None and own.n_bytes >= copy_bytes:
        return own
    copied = _read(copy)
    if own.damage is not None and copied.damage is not None:
        # Either may have what the other lost.
        raise InputError(f"{own.damage}, nor is {copied.damage}. Make one whole by hand from the other's lines.")
    if copied.n_bytes > own.n_bytes or (own.damage and copied.n_bytes == own.n_bytes > 0):
        wrong = own.damage or (f"{path}: ends too early" if path.exists() else f"{path}: is missing")
        tell(f"{wrong}; its copy {BACKUP_FOLDER}/{copy.name} is used.")
        return copied
    if own.damage is not None:
        raise InputError(f"{own.damage}. Restore the file from a copy, or remove that line and those after it.")
    return own


def _read(path: Path, so_far: _Reading | None = None) -> _Reading:
    """What a file says; with `so_far`, whose history grows, only the lines after it are read."""
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
    """Reads a journal that another process writes: at first all of it, then what was added.

    Args:
        path: of the journal; its copy is read where it is damaged.
        tell: called with a line where the copy had to be used.
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
    """Make `path` hold the good lines and nothing else; nothing to do where that is so."""
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
