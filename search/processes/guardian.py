"""A process that outlives a command, ends the processes that the command left, and removes its temporary folder.

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

# Environment variable that names the folder, in every process that a command starts.
MARK = "DEPTHWISE_SEARCH_FOLDER"
PREFIX = "dws-"
# File with the command's process id; it exists as soon as the folder is locked.
OWNER = "owner"

# Python's resource tracker, which ends after the last child and then removes their shared memory.
_RESOURCE_TRACKER = b"multiprocessing.resource_tracker"

GRACE_S = 1.0
# Longest wait for a process that cannot be ended, such as one that waits for a device.
PATIENCE_S = 10.0
POLL_S = 0.05


def main() -> None:
    """Wait until standard input is closed, which happens when the command ends, and clean up."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remove_stale_folders(folder.parent)
    sys.stdin.buffer.read()
    end_marked(folder)
    remove_folder(folder)


def end_marked(folder: Path) -> None:
    """End every process with the mark of `folder`: SIGTERM, and SIGKILL for those that live `GRACE_S` later."""
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

    Processes that set the mark later, as the command does for its children, are not included, nor is Python's
    resource tracker.
    """
    mark = os.fsencode(f"{MARK}={folder}")
    return [
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if mark in _read(process / "environ").split(b"\0") and _RESOURCE_TRACKER not in _read(process / "cmdline")
    ]


def remove_folder(folder: Path) -> None:
    """Remove a command's folder, its owner file last, by which a folder that a power cut left is recognised."""
    with contextlib.suppress(OSError):  # removed already, or partly removable only
        for entry in folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != OWNER:
                entry.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def remove_stale_folders(parent: Path) -> None:
    """Remove the folders in `parent` whose command and guardian have both ended, after ending their processes.

    Only folders of this user with private permissions and an owner file whose lock is free are removed. The kernel
    releases the lock with its holders, in any namespace or container; where locks do not work, folders stay.
    """
    with contextlib.suppress(OSError):  # removed, or not readable: not a folder of this program
        for folder in parent.glob(f"{PREFIX}*"):
            _remove_if_stale(folder)


def _remove_if_stale(folder: Path) -> None:
    with contextlib.suppress(OSError):  # locked, of another user, or a link: left alone
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            status = os.fstat(handle)
            if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o700:
                return
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Empty or missing: the folder is being made.
            if os.stat(OWNER, dir_fd=handle, follow_symlinks=False).st_size:
                end_marked(folder)
                remove_folder(folder)
        finally:
            os.close(handle)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended, or belongs to another user
        return b""


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


if __name__ == "__main__":
    main()
