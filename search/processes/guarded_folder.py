"""A command's temporary folder. However the command ends, the folder and all processes started within are removed."""

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

# A socket's path has at most 107 bytes, of which Ray's paths below this folder need the rest.
LONGEST_TEMPORARY_PATH = 26
# Longer than the guardian's own limit.
GUARDIAN_PATIENCE_S = 15.0


@dataclass(frozen=True, slots=True)
class GuardedFolder:
    """A private folder: processes that are started within the block put their temporary files into `path`."""

    path: Path


@contextlib.contextmanager
def guarded_folder() -> Iterator[GuardedFolder]:
    """Make a temporary folder. After the block or the end of this process, remove it and end all processes started
    within, with their children.

    This holds for `kill -9` of this process or its process group too. Where the guardian is killed as well, the next
    guardian in the same temporary folder removes the rest.

    Processes are recognised by an environment variable, which is set here and inherited.
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
    """Hold the lock that marks a folder as in use; on the folder itself, where systemd's cleaning respects it.

    Yields:
        The lock's file descriptor.
    """
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # without locks, no guardian finds the folder stale either
            fcntl.flock(lock, fcntl.LOCK_EX)
        (path / guardian.OWNER).write_text(str(os.getpid()))
        yield lock
    finally:
        os.close(lock)


@contextlib.contextmanager
def _guarded(path: Path, lock: int) -> Iterator[None]:
    """Start the guardian without waiting for it, and end it by closing its pipe.

    The guardian has its own session, so that signals to this process's group or terminal do not reach it, and it
    inherits the lock. No child inherits this end of the pipe.
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
        return  # the guardian finishes alone
    if was_killed:
        guardian.end_marked(path)


def _environment_within(path: Path) -> dict[str, str]:
    return {
        guardian.MARK: str(path),
        "TMPDIR": str(path),
        # Wherever torch is imported, it creates an empty cache for its compiler.
        "TORCHINDUCTOR_CACHE_DIR": f"{path}/inductor",
    }
