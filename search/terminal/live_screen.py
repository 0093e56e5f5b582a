"""A full screen in a terminal. After it closes, the terminal shows what it showed before."""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from search.terminal.screen import ASCII, UNICODE, Glyphs

REFRESH_S = 0.5
LARGEST_SHARE = 0.01  # of a core's time that drawing may take; LONGEST_PAUSE_S has precedence
# Callers call `refresh` at least once a second, so that draws are at most 2 s apart.
LONGEST_PAUSE_S = 1.0

Draw = Callable[[int, int, Glyphs], Sequence[Text]]


def can_show_screens(console: Console) -> bool:
    """Whether the console is a terminal with a movable cursor, and `NO_COLOR` is not set."""
    return console.is_terminal and not console.is_dumb_terminal and not os.environ.get("NO_COLOR")


class LiveScreen:
    """The terminal's alternate screen; a context manager.

    `refresh` draws in the caller's thread, so that the shown data does not change meanwhile. Text that is written to
    standard error is kept, and written to the terminal after the screen closes.

    Args:
        console: a terminal.
        draw: makes the lines from a width, a height and the terminal's characters.
        on_message: called with each line that is written to standard error.
    """

    def __init__(self, console: Console, draw: Draw, on_message: Callable[[str], None] = lambda line: None) -> None:
        self._console = console
        self._draw = draw
        self._glyphs = ASCII if console.options.ascii_only else UNICODE
        self._messages = _Messages(on_message)
        self._stderr = sys.stderr
        self._due_s = 0.0
        self._live = Live(
            console=console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> Self:
        self._live.start()
        self._stderr, sys.stderr = sys.stderr, self._messages
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the alternate screen. A second call does nothing; a terminal that is gone is ignored."""
        keeps_messages = sys.stderr is self._messages
        if keeps_messages:
            sys.stderr = self._stderr
        with contextlib.suppress(OSError):
            self._live.stop()
        if keeps_messages:
            with contextlib.suppress(OSError):
                self._stderr.write(self._messages.getvalue())
                self._stderr.flush()

    def refresh(self, at_once: bool = False) -> None:
        """Draw if the last draw was long enough ago, or `at_once`."""
        if not at_once and time.monotonic() < self._due_s:
            return
        started_s = time.thread_time()
        width, height = self._console.size
        self._live.update(Group(*self._draw(width, height, self._glyphs)), refresh=True)
        cost_s = time.thread_time() - started_s
        self._due_s = time.monotonic() + min(max(REFRESH_S, cost_s / LARGEST_SHARE), LONGEST_PAUSE_S)


class _Messages(io.StringIO):
    """Keeps written text, and calls `on_line` with each line."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        super().__init__()
        self._on_line = on_line
        self._begun = ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            if line.strip():
                self._on_line(line)
        return super().write(text)
