"""A command's temporary folder. However the command ends, the folder and all processes started within are removed."""

import contextlib
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from search.processes import guardian
from trainable.environment import environment_with

# A socket's path has at most 107 bytes, of which Ray's paths below this folder need the rest.
LONGEST_TEMPORARY_PATH = 26
# Longer than the guardian's own limit.
GUARDIAN_PATIENCE_S = 15.0


@contextlib.contextmanager
def guarded_folder() -> Iterator[Path]:
    """Make a private temporary folder, for all temporary files of processes that are started within the block.

    After the block or the end of this process, the folder is removed and all processes started within the block are
    ended, with their children. This holds for `kill -9` of this process or its process group too. Where the guardian
    is killed as well, the next guardian in the same temporary folder removes the rest.

    Processes are recognised by an environment variable, which is set here and inherited.
    """
    temporary = tempfile.gettempdir()
    short = temporary if len(temporary) <= LONGEST_TEMPORARY_PATH else "/tmp"
    path = Path(tempfile.mkdtemp(prefix=guardian.PREFIX, dir=short))
    environment = {
        guardian.MARK: str(path),
        "TMPDIR": str(path),
        # Wherever torch is imported, it creates an empty cache for its compiler.
        "TORCHINDUCTOR_CACHE_DIR": f"{path}/inductor",
    }
    try:
        with _owned(path) as lock, _guarded(path, lock), environment_with(environment):
            yield path
    finally:
        guardian.remove_folder(path)


@contextlib.contextmanager
def _owned(path: Path) -> Iterator[int]:
    """Hold the lock that marks a folder as in use, and yield its file descriptor.

    The lock is on the folder itself, where systemd's cleaning respects it.
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
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guardian.__file__, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != guardian.MARK},
        pass_fds=(lock,),
        start_new_session=True,
    )
    assert process.stdin is not None
    try:
        yield
    finally:
        process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the guardian finishes alone
            if process.wait(GUARDIAN_PATIENCE_S) != 0:  # it was killed
                guardian.end_marked(path)
