"""The screen of a search that another process runs: `search.leaderboard --watch`."""

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from datetime import datetime

from rich.console import Console, RenderableType

from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import seconds_used
from search.terminal.live_screen import REFRESH_S, live_screen
from search.terminal.screen import LogLine, ScreenState, screen

FETCH_S = 10.0  # interval of fetching results at a URL


def watch(experiment: Experiment, console: Console) -> None:
    """Show a running search, on a terminal that shows screens, until it ends or the user presses q.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C; the screen is closed.
        InputError: its journal is damaged.
    """
    watched = _Watched(experiment)
    with (
        _keyboard() as pressed,
        live_screen(console, lambda: watched.draw(*console.size), watched.take_message) as live,
    ):
        while experiment.is_live():
            live.refresh()
            if "q" in pressed(REFRESH_S):
                return
            watched.read()


class _Watched:
    """State of the watched search, read again each second."""

    def __init__(self, experiment: Experiment) -> None:
        self._experiment = experiment
        self._follower = experiment.follower()
        self._notes: list[LogLine] = []
        self._fetched_s = time.monotonic()
        self._space = experiment.space
        self._manifest = experiment.manifest
        self._history = self._read_history()

    def read(self) -> None:
        """Read new events. A resumed search may have more trials or another budget, so that its space is read again."""
        if time.monotonic() - self._fetched_s >= FETCH_S:
            self._fetched_s = time.monotonic()
            self._experiment.bring_up_to_date()
            self._manifest = self._experiment.manifest
        before = self._history.space
        self._history = self._read_history()
        if self._history.space != before:
            self._space = self._experiment.space

    def _read_history(self) -> History:
        history = self._follower.history()
        history.chances = self._manifest.data.chances_by_metric
        return history

    def take_message(self, line: str) -> None:
        self._notes.append(LogLine(time.time(), line, "yellow"))

    def draw(self, width: int, height: int) -> RenderableType:
        now, space, manifest = time.time(), self._space, self._manifest
        sessions, budget_s = manifest.sessions, space.search.time_budget_s
        state = ScreenState(
            name=self._experiment.name,
            space=space,
            history=self._history,
            trials_at_once=manifest.device.trials_at_once,
            epoch_images=space.dataset.images_per_epoch or manifest.data.n_train,
            now=now,
            session_start=datetime.fromisoformat(sessions[-1].started_at).timestamp() if sessions else None,
            budget_left_s=None if budget_s is None else budget_s - seconds_used(sessions, self._history, now),
            notes=self._notes,
            hint="q leaves; the search goes on",
        )
        return screen(state, width, height)


@contextlib.contextmanager
def _keyboard() -> Iterator[Callable[[float], str]]:
    """A function that gives the keys pressed within some seconds; keys are not shown, and need no return key."""

    def pressed(timeout_s: float) -> str:
        ready, _, _ = select.select([handle], [], [], timeout_s)
        return os.read(handle, 100).decode(errors="replace") if ready else ""

    def no_key(timeout_s: float) -> str:
        time.sleep(timeout_s)
        return ""

    if not sys.stdin.isatty():
        yield no_key
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        yield pressed
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
