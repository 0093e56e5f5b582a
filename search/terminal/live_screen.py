"""A full screen in a terminal. After it closes, the terminal shows what it showed before."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator

from rich.console import Console, RenderableType
from rich.live import Live

REFRESH_S = 1.0


def can_show_screens(console: Console) -> bool:
    """Whether the console is a terminal with a movable cursor and UTF-8, and `NO_COLOR` is not set."""
    moves = console.is_terminal and not console.is_dumb_terminal
    return moves and not console.options.ascii_only and not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def live_screen(
    console: Console, draw: Callable[[], RenderableType], on_message: Callable[[str], None]
) -> Iterator[Live]:
    """Show the terminal's alternate screen, which `refresh()` of the result draws, in the caller's thread.

    Text that is written to standard error is kept, and written to the terminal after the screen closes; `on_message` is
    called with each line of it.
    """
    live = Live(
        get_renderable=draw,
        console=console,
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    messages, stderr = _Messages(on_message), sys.stderr
    try:
        live.start()
        sys.stderr = messages
        yield live
    finally:
        if sys.stderr is messages:
            sys.stderr = stderr
        with contextlib.suppress(OSError):  # the terminal may be gone
            live.stop()
        with contextlib.suppress(OSError):
            stderr.write(messages.getvalue())
            stderr.flush()


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
