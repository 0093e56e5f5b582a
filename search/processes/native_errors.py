"""Redirects the standard error of native code in this process to a file, away from the terminal."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def native_errors_in(path: Path) -> Iterator[Callable[[Path], None]]:
    """Redirect file descriptor 2 to a file within the block, while `sys.stderr` still writes to the terminal.

    Ray's C++ code writes to descriptor 2 at every log level, and child processes inherit it. Files that stay empty are
    removed.

    Yields:
        A function that redirects to another file from now on.
    """
    sys.stderr.flush()
    terminal, before = os.dup(2), sys.stderr
    files: list[Path] = []

    def send_to(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        os.dup2(handle, 2)
        os.close(handle)
        files.append(path)
        _remove_empty(files[:-1])

    try:
        # Under pytest, and while a screen is shown, `sys.stderr` is redirected already.
        if _leads_to_descriptor_2():
            sys.stderr = open(terminal, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
        send_to(path)
        yield send_to
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        sys.stderr = before
        os.close(terminal)
        _remove_empty(files)


def _leads_to_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (OSError, AttributeError):
        return False


def _remove_empty(files: list[Path]) -> None:
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size == 0:
                path.unlink()
