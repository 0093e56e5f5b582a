"""A command's temporary folder: with the command, however that ends, go the folder and all that was started within."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from search.processes import guardian
from trainable.environment import environment_with

# A socket's path has at most 107 bytes, and Ray's below this folder take all that is left.
LONGEST_TEMPORARY_PATH = 26
# Longer than the guardian is patient itself.
GUARDIAN_PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class GuardedFolder:
    """A private folder: processes that are started within put their temporary files into `path`."""

    path: Path


@contextlib.contextmanager
def guarded_folder() -> Iterator[GuardedFolder]:
    """Make a temporary folder; after the block, or this process's end, it is gone, and so are all processes that were
    started within the block, and theirs.

    `kill -9` of this process, or of all its process group, is an end like any other. Where the guardian is killed as
    well, the next one in the same temporary folder removes what stayed.

    Processes are known by a variable of their environment, which is set here for all that inherit this process's.
    """
    temporary = tempfile.gettempdir()
    short = temporary if len(temporary) <= LONGEST_TEMPORARY_PATH else "/tmp"
    path = Path(tempfile.mkdtemp(prefix=guardian.PREFIX, dir=short))
    try:
        with _owned(path) as lock, _guarded(path, lock), environment_with(_environment_within(path)):
            yield GuardedFolder(path)
    finally:
        guardian.remove_folder(path)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[int]:
    """Hold the lock that says that somebody looks after a folder; on the folder, where systemd's cleaning heeds it.

    Yields:
        The lock's file descriptor.
    """
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: nobody can take it for forsaken either
            fcntl.flock(lock, fcntl.LOCK_EX)
        (path / guardian.OWNER).write_text(str(os.getpid()))
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def _guarded(path: Path, lock: int) -> Iterator[None]:
    """Start the guardian without waiting for it, and end it by closing its pipe.

    It has a session of its own, so that what is sent to this process's group or terminal does not reach it, and its
    share of the lock. No child inherits this end of the pipe.
    """
    theirs, ours = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, str(path)],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: value for name, value in os.environ.items() if name != guardian.MARK},
            pass_fds=(lock,),
            start_new_session=True,
        )
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        yield
    finally:
        os.close(ours)
        _wait_for(process, path)


def _wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    try:
        was_killed = process.wait(GUARDIAN_PATIENCE_S) != 0
    except subprocess.TimeoutExpired:
        return  # it goes on alone
    if was_killed:
        guardian.end_marked(path)


def _environment_within(path: Path) -> dict[str, str]:
    return {
        guardian.MARK: str(path),
        "TMPDIR": str(path),
        # torch makes an empty cache for its compiler wherever it is imported.
        "TORCHINDUCTOR_CACHE_DIR": f"{path}/inductor",
    }
