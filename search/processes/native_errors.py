"""Redirects the standard error of native code in this process to a file, away from the terminal."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_NAME = "driver.err"


class NativeErrors:
    """Redirects file descriptor 2 to a file, while `sys.stderr` still writes to the terminal.

    Ray's C++ code writes to descriptor 2 at every log level, and child processes inherit it.
    """

    def __init__(self) -> None:
        self.path: Path | None = None

    def send_to(self, path: Path) -> None:
        """Append to `path` from now on; remove the previous file if it is empty."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        os.dup2(handle, 2)
        os.close(handle)
        before, self.path = self.path, path
        _remove_if_empty(before)


@contextlib.contextmanager
def native_errors_in(path: Path) -> Iterator[NativeErrors]:
    """Redirect the standard error of native code to `path` within the block; remove the file if it is empty."""
    sys.stderr.flush()
    terminal = os.dup(2)
    before = sys.stderr
    errors = NativeErrors()
    try:
        # Under pytest, and while a screen is shown, `sys.stderr` is redirected already.
        if _leads_to_descriptor_2():
            sys.stderr = open(terminal, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        errors.send_to(path)
        yield errors
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        sys.stderr = before
        os.close(terminal)
        _remove_if_empty(errors.path)


def _leads_to_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (OSError, AttributeError):
        return False


def _remove_if_empty(path: Path | None) -> None:
    with contextlib.suppress(FileNotFoundError):
        if path and path.stat().st_size == 0:
            path.unlink()
