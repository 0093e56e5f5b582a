"""The screen of a search that another process runs: `search.leaderboard --watch`."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal

from rich.console import Console
from rich.text import Text

from search.analysis.cost import recent_epoch_s, remaining
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Manifest, seconds_used
from search.terminal.live_screen import LiveScreen
from search.terminal.screen import Glyphs, LogLine, ScreenState, screen
from spaces.schema import Space

POLL_S = 1.0
FETCH_S = 10.0  # interval of fetching results at a URL

WatchEnd = Literal["ended", "left"]


def watch(experiment: Experiment, console: Console) -> WatchEnd:
    """Show a running search until it ends or the user presses q.

    Args:
        experiment: a running experiment.
        console: a terminal that shows screens.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the screen is closed.
        InputError: its journal is damaged.
    """
    watched = _Watched(experiment)
    with _keys() as pressed, LiveScreen(console, watched.draw, watched.take_message) as live:
        while experiment.is_live():
            live.refresh()
            if "q" in pressed(POLL_S):
                return "left"
            watched.read()
    return "ended"


class _Watched:
    """State of the watched search, read again each second.

    Args:
        experiment: a running experiment.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._follower = experiment.follower()
        self._notes: list[LogLine] = []
        self._fetched_s = time.monotonic()
        self._space: Space = experiment.space
        self._manifest: Manifest = experiment.manifest
        self._history: History = self._follower.history()

    def read(self) -> None:
        """Read new events. A resumed search may have more trials or another budget, so that its space is read again."""
        if time.monotonic() - self._fetched_s >= FETCH_S:
            self._fetched_s = time.monotonic()
            self._experiment.bring_up_to_date()
            self._manifest = self._experiment.manifest
        before = self._history.space
        self._history = self._follower.history()
        if self._history.space != before:
            self._space = self._experiment.space

    def take_message(self, line: str) -> None:
        self._notes.append(LogLine(time.time(), line, "yellow"))

    def draw(self, width: int, height: int, glyphs: Glyphs) -> Sequence[Text]:
        left = remaining(self._history, self._space)
        epoch_s = recent_epoch_s(self._history, _session_start(self._manifest))
        device, now = self._manifest.device, time.time()
        budget_left_s = self._budget_left_s(now)
        scene = ScreenState(
            name=self._experiment.name,
            space=self._space,
            history=self._history,
            remaining=left,
            left_s=left.seconds(epoch_s, max(1, device.trials_at_once), budget_left_s),
            trials_at_once=device.trials_at_once,
            epoch_images=self._space.dataset.images_per_epoch or self._manifest.data.n_train,
            now=now,
            elapsed_s=_elapsed_s(self._manifest, now),
            notes=self._notes,
            hint="q leaves; the search goes on",
        )
        return screen(scene, width, height, glyphs)

    def _budget_left_s(self, now: float) -> float | None:
        budget_s = self._space.search.time_budget_s
        return None if budget_s is None else budget_s - seconds_used(self._manifest.sessions, self._history, now)


def _elapsed_s(manifest: Manifest, now: float) -> float | None:
    return now - _session_start(manifest) if manifest.sessions else None


def _session_start(manifest: Manifest) -> float:
    """Start of the latest session, in seconds since 1970 (UTC); 0 before the first session."""
    return datetime.fromisoformat(manifest.sessions[-1].started_at).timestamp() if manifest.sessions else 0.0


class _Pressed:
    """Waits for keys.

    Args:
        handle: file descriptor of the keyboard; None without a keyboard.
    """

    def __init__(self, handle: int | None) -> None:
        self._handle = handle

    def __call__(self, timeout_s: float) -> str:
        """The first key that is pressed within `timeout_s` seconds; empty without a key."""
        if self._handle is None:
            time.sleep(timeout_s)
            return ""
        ready, _, _ = select.select([self._handle], [], [], timeout_s)
        return os.read(self._handle, 100).decode(errors="replace") if ready else ""


@contextlib.contextmanager
def _keys() -> Iterator[_Pressed]:
    """Read keys without waiting for the return key and without showing them."""
    if not sys.stdin.isatty():
        yield _Pressed(None)
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        yield _Pressed(handle)
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
