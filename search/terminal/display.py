"""Output of a running search: a screen in a terminal, a line for each ended trial elsewhere."""

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from rich.console import Console
from rich.text import Text

from search.analysis.columns import compact
from search.analysis.cost import Remaining, recent_epoch_s, remaining
from search.analysis.ranking import best_accuracy
from search.experiment.events import Event, ReplicateEnded, TrialEnded
from search.experiment.history import History, Replicate, Trial
from search.policy import budget
from search.terminal.live_screen import LiveScreen, can_show_screens
from search.terminal.screen import Glyphs, LogLine, ScreenState, screen
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


class SearchDisplay:
    """Shows the events of a search; a context manager.

    Args:
        space: the searched space.
        console: output.
        trials_at_once: number of slots.
        quiet: whether to print failures only.
        name: name of the experiment.
        epoch_images: number of training images of an epoch.
        started_s: start of the search, by the monotonic clock.
        plain: whether to print a line for each event in a terminal too.
        history: results of earlier sessions.
        time_left_s: rest of the time budget at `started_s`; None without a time budget.
    """

    def __init__(
        self,
        space: Space,
        console: Console,
        trials_at_once: int,
        quiet: bool = False,
        name: str = "",
        epoch_images: int = 0,
        started_s: float | None = None,
        plain: bool = False,
        history: History | None = None,
        time_left_s: float | None = None,
    ) -> None:
        self._space = space
        self._console = console
        self._trials_at_once = trials_at_once
        self._quiet = quiet
        self._name = name or space.name
        self._epoch_images = epoch_images
        self._started_s = time.monotonic() if started_s is None else started_s
        self._time_left_s = time_left_s
        self._history = history or History()
        self._session_start = time.time() - (time.monotonic() - self._started_s)
        self._notes: list[LogLine] = []
        self._to_tell_again: list[tuple[str, str]] = []
        shows_screen = can_show_screens(console) and not quiet and not plain
        self._screen = LiveScreen(console, self._draw, self._take_message) if shows_screen else None

    def __enter__(self) -> "SearchDisplay":
        if self._screen:
            self._try_to_show(self._screen.__enter__)
        self.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def observe(self, event: Event, history: History) -> None:
        """Show an event of the search."""
        self._history = history
        if isinstance(event, TrialEnded | ReplicateEnded):
            one = history.trials[event.trial] if isinstance(event, TrialEnded) else history.replicates[event.run]
            failed = event.status in ("failed", "diverged")
            if failed or not self._quiet:
                self._tell(self._end_line(one, event), STATUS_STYLES[event.status], failed)
        self.refresh()

    def note(self, message: str) -> None:
        """Show a warning."""
        if not self._quiet:
            self._notes.append(LogLine(time.time(), message, "yellow"))
            self._tell(message, "yellow", True)

    def refresh(self) -> None:
        """Draw the screen, at most every `REFRESH_S` seconds."""
        if self._screen:
            self._try_to_show(self._screen.refresh)

    def _try_to_show(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except Exception as error:  # an error of the screen must not end a search
            self.close()
            self.note(f"The screen cannot be drawn ({type(error).__name__}: {error}); events follow a line each.")

    def close(self) -> None:
        """Close the screen and print its failures and notes; a second call does nothing."""
        if not self._screen:
            return
        closing, self._screen = self._screen, None
        closing.close()
        for line, style in self._to_tell_again[-MOST_TOLD_AGAIN:]:
            self._print(line, style)

    def _tell(self, line: str, style: str, matters_later: bool) -> None:
        """Print a line at once; while a screen is shown, after it closes, if `matters_later`."""
        if not self._screen:
            self._print(line, style)
        elif matters_later:
            self._to_tell_again.append((line, style))

    def _print(self, line: str, style: str) -> None:
        print_while_read(self._console, Text(printable(line), style=style))

    def _take_message(self, line: str) -> None:
        self._notes.append(LogLine(time.time(), line, "yellow"))

    def _draw(self, width: int, height: int, glyphs: Glyphs) -> Sequence[Text]:
        left = remaining(self._history, self._space)
        scene = ScreenState(
            name=self._name,
            space=self._space,
            history=self._history,
            remaining=left,
            left_s=self._left_s(left),
            trials_at_once=self._trials_at_once,
            epoch_images=self._epoch_images,
            now=time.time(),
            elapsed_s=time.monotonic() - self._started_s,
            notes=self._notes,
            hint="Ctrl-C ends the search; nothing is lost",
        )
        return screen(scene, width, height, glyphs)

    def _end_line(self, one: Trial | Replicate, end: TrialEnded | ReplicateEnded) -> str:
        accuracy = f"{one.last.validation_accuracy:7.2%}" if one.last and not one.last.diverged else "      -"
        if isinstance(one, Replicate):
            name, of = "replicate", f"of trial {one.trial}"
        elif one.baseline:
            name, of = "baseline", compact(self._space.baseline_suggestion())
        else:
            name, of = f"trial {one.number}", compact(one.suggested)
        line = f"{name:<10} {end.status:<9} epoch {one.n_epochs:>3}  {accuracy}  {of}"
        if end.reason and end.status != "stopped":
            line += f"  ({end.reason})"
        return line if self._screen else f"{line}  [{self._status()}]"

    def _status(self) -> str:
        n_runs_ended = len(self._history.replicates) - len(self._history.unfinished_replicates)
        parts = [
            f"{self._history.n_ended}{_of(self._space.search.trials)} trials",
            self._epochs_text(),
        ]
        if self._history.replicates:
            parts.append(counted(n_runs_ended, "replicate"))
        best = best_accuracy(self._history.trials.values())
        if best:
            parts.append(f"best {best[1]:.2%} (trial {best[0]})")
        left_s = self._left_s(remaining(self._history, self._space))
        if left_s:
            parts.append(f"about {duration_text(left_s)} left")
        return ", ".join(parts)

    def _epochs_text(self) -> str:
        epoch_budget = self._space.search.epoch_budget
        if epoch_budget is None:
            return counted(self._history.n_epochs, "epoch")
        return f"{budget.epochs_trained(self._history)}/{epoch_budget} epochs"

    def _left_s(self, left: Remaining) -> float | None:
        gone_s = time.monotonic() - self._started_s
        budget_left_s = None if self._time_left_s is None else self._time_left_s - gone_s
        return left.seconds(recent_epoch_s(self._history, self._session_start), self._trials_at_once, budget_left_s)


def _of(limit: int | None) -> str:
    return "" if limit is None else f"/{limit}"
