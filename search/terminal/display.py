"""Output of a running search: a screen in a terminal, a line for each ended trial elsewhere."""

import contextlib
import io
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from search.analysis.cost import remaining
from search.analysis.ranking import rank
from search.experiment.events import Event, ReplicateEnded, TrialEnded
from search.experiment.history import History
from search.policy import budget
from search.terminal.live_screen import REFRESH_S, can_show_screens, live_screen
from search.terminal.screen import LogLine, ScreenState, end_text, screen
from search.terminal.tables import STATUS_STYLES
from spaces.command import discard_output
from spaces.counted import counted, duration_text
from spaces.printable import printable
from spaces.schema import Space

MOST_TOLD_AGAIN = 20  # failures and notes that are printed again when the screen closes


class SearchConsole(Console):
    """A console that raises BrokenPipeError; rich's own handler would end the command."""

    def on_broken_pipe(self) -> None:
        raise  # the BrokenPipeError, which rich is handling


def print_while_read(console: Console, text: Text | str) -> None:
    """Print a line. If the terminal or the reader of a pipe is gone, discard this and all later output."""
    try:
        console.print(text, soft_wrap=True)
    except OSError:
        with contextlib.suppress(io.UnsupportedOperation):
            discard_output(console.file)


@dataclass
class SearchDisplay:
    """Shows the events of a search; a context manager.

    Attributes:
        quiet: whether to print failures only.
        epoch_images: number of training images of an epoch.
        started_s: start of the search, by the monotonic clock.
        plain: whether to print a line for each event in a terminal too.
        time_left_s: rest of the time budget at `started_s`; None without a time budget.
    """

    space: Space
    console: Console
    trials_at_once: int
    quiet: bool = False
    name: str = ""
    epoch_images: int = 0
    started_s: float = field(default_factory=time.monotonic)
    plain: bool = False
    history: History = field(default_factory=History)
    time_left_s: float | None = None

    def __post_init__(self) -> None:
        self.name = self.name or self.space.name
        self._notes: list[LogLine] = []
        self._to_tell_again: list[tuple[str, str]] = []
        self._shows_screen = can_show_screens(self.console) and not self.quiet and not self.plain
        self._screen = contextlib.ExitStack()
        self._live: Live | None = None
        self._due_s = 0.0

    def __enter__(self) -> "SearchDisplay":
        if self._shows_screen:
            self._try_to_show(self._open)
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def observe(self, event: Event, history: History) -> None:
        """Show an event of the search."""
        self.history = history
        if isinstance(event, TrialEnded | ReplicateEnded):
            one = history.trials[event.trial] if isinstance(event, TrialEnded) else history.replicates[event.run]
            failed = event.status in ("failed", "diverged")
            if failed or not self.quiet:
                status = "" if self._shows_screen else f"  [{self._status()}]"
                self._tell(f"{end_text(one)}{status}", STATUS_STYLES[event.status], failed)
        self.refresh()

    def note(self, message: str) -> None:
        """Show a warning."""
        if not self.quiet:
            self._take_message(message)
            self._tell(message, "yellow", True)

    def refresh(self) -> None:
        """Draw the screen, at most every `REFRESH_S` seconds."""
        if self._live and time.monotonic() >= self._due_s:
            self._try_to_show(self._live.refresh)
            self._due_s = time.monotonic() + REFRESH_S

    def close(self) -> None:
        """Close the screen and print its failures and notes; a second call does nothing."""
        self._shows_screen, self._live = False, None
        self._screen.close()
        to_tell, self._to_tell_again = self._to_tell_again[-MOST_TOLD_AGAIN:], []
        for line, style in to_tell:
            self._print(line, style)

    def _open(self) -> None:
        self._live = self._screen.enter_context(live_screen(self.console, self._draw, self._take_message))

    def _try_to_show(self, show: Callable[[], object]) -> None:
        try:
            show()
        except Exception as error:  # an error of the screen must not end a search
            self.close()
            self.note(f"The screen cannot be drawn ({type(error).__name__}: {error}); events follow a line each.")

    def _tell(self, line: str, style: str, matters_later: bool) -> None:
        """Print a line at once; while a screen is shown, after it closes, if `matters_later`."""
        if not self._shows_screen:
            self._print(line, style)
        elif matters_later:
            self._to_tell_again.append((line, style))

    def _print(self, line: str, style: str) -> None:
        print_while_read(self.console, Text(printable(line), style=style))

    def _take_message(self, line: str) -> None:
        self._notes.append(LogLine(time.time(), line, "yellow"))

    def _draw(self) -> RenderableType:
        return screen(self._state(), *self.console.size)

    def _state(self) -> ScreenState:
        gone_s, now = time.monotonic() - self.started_s, time.time()
        return ScreenState(
            name=self.name,
            space=self.space,
            history=self.history,
            trials_at_once=self.trials_at_once,
            epoch_images=self.epoch_images,
            now=now,
            session_start=now - gone_s,
            budget_left_s=None if self.time_left_s is None else self.time_left_s - gone_s,
            notes=self._notes,
            hint="Ctrl-C ends the search; nothing is lost",
        )

    def _status(self) -> str:
        history, search = self.history, self.space.search
        limit = budget.trials_limit(history, self.space)
        of = "" if limit is None else f"/{limit}"
        epochs = counted(history.n_epochs, "epoch")
        if search.epoch_budget is not None:
            epochs = f"{budget.epochs_trained(history)}/{search.epoch_budget} epochs"
        parts = [f"{history.n_ended}{of} trials", epochs]
        if history.replicates:
            parts.append(counted(len(history.replicates) - len(history.unfinished_replicates), "replicate"))
        best = next(iter(rank(history)), None)
        if best and best.score is not None:
            parts.append(f"best trial {best.trial}: {best.result_text}")
        left_s = self._state().left_s(remaining(history, self.space))
        if left_s:
            parts.append(f"about {duration_text(left_s)} left")
        return ", ".join(parts)
