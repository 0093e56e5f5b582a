"""The process that outlives a command: it ends what the command left, and removes the command's temporary folder.

`search.processes.guarded_folder` starts it as a script, without the packages beside it, so that it starts at once and
takes little memory. It uses the standard library only, and Linux's `/proc` to find processes.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

# Names the folder in the environment of every process that a command starts.
MARK = "DEPTHWISE_SEARCH_FOLDER"
PREFIX = "dws-"
# Holds the command's process id; there as soon as the folder is locked.
OWNER = "owner"

# Serves a command's children, and ends after the last of them, when it has removed what they left in shared memory.
_RESOURCE_TRACKER = b"multiprocessing.resource_tracker"

GRACE_S = 1.0
# A process that cannot be ended, such as one that waits for a device, is not waited for longer.
PATIENCE_S = 10.0
POLL_S = 0.05


def main() -> None:
    """Wait until standard input ends, which is when the command does, and clear up after it."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remove_stale_folders(folder.parent)
    sys.stdin.buffer.read()
    end_marked(folder)
    remove_folder(folder)


def end_marked(folder: Path) -> None:
    """End every process that carries the mark of `folder`: SIGTERM, and SIGKILL for what is there `GRACE_S` later."""
    asked: set[int] = set()
    started_s = time.monotonic()
    while pids := marked_processes(folder):
        elapsed_s = time.monotonic() - started_s
        if elapsed_s > PATIENCE_S:
            return
        for pid in pids:
            if elapsed_s > GRACE_S:
                _send(pid, signal.SIGKILL)
            elif pid not in asked:
                _send(pid, signal.SIGTERM)
        asked.update(pids)
        time.sleep(POLL_S)


def marked_processes(folder: Path) -> list[int]:
    """Processes that were started with the mark of `folder` in their environment.

    One that marks itself later, as the command does for its children, is not among them, nor is Python's own process
    that looks after shared memory.
    """
    mark = os.fsencode(f"{MARK}={folder}")
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if mark in _read(process / "environ").split(b"\0") and _RESOURCE_TRACKER not in _read(process / "cmdline")
    ]


def remove_folder(folder: Path) -> None:
    """Remove a command's folder, its owner's record last: without it, what a power cut leaves would never be stale."""
    with contextlib.suppress(OSError):  # gone already, or as much as can be removed is
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != OWNER:
                entry.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale_folders(parent: Path) -> None:
    """Remove the folders in `parent` whose command and guardian are both gone, and first end what they left.

    Only folders that are surely such: of this user and private, as this program made them, with an owner on record
    who holds them no longer. The lock is the kernel's and ends with its holders, whatever process id, namespace or
    container they had; where locks do not work, folders stay.
    """
    with contextlib.suppress(OSError):  # no longer there, or not to be read: nothing of ours
        for folder in parent.glob(f"{PREFIX}*"):
            _remove_if_stale(folder)


def _remove_if_stale(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a live one's lock, somebody else's, a link: all of these stay
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(handle)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
                return
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Empty or missing: just being made.
            if os.stat(OWNER, dir_fd=handle, follow_symlinks=False).st_size:
                end_marked(folder)
                remove_folder(folder)
        finally:
            os.close(handle)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or is somebody else's
        return b""


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    main()
