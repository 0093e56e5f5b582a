"""What a running search shows: one line a trial that ends, and in a terminal a status line below."""

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from search import budget, confirmation
from search.asha import waits_at_rung
from search.estimates import MAX_SIMULATED_TRIALS, duration_text, expected_epochs_left, seconds_left
from search.expectation import expected_search, passing_of
from search.ranking import best_accuracy
from search.records import EpochDone, Event, History, RunEnded, RunEpochDone, Trial, TrialEnded
from search.tables import SHORT_NAMES, short
from spaces.parameters import Number
from spaces.printable import printable
from spaces.schema import Space

REFRESH_S = 0.5
_STYLES = {"completed": "green", "stopped": "dim", "failed": "red", "diverged": "red"}


class SearchDisplay:
    """Prints the events of a search; a context manager.

    Args:
        space: what is searched.
        console: where to; a status line is kept at the bottom if it is a terminal.
        trials_at_once: for the time left.
        quiet: print nothing but failures.
    """

    def __init__(self, space: Space, console: Console, trials_at_once: int, quiet: bool = False) -> None:
        self._space = space
        self._console = console
        self._trials_at_once = trials_at_once
        self._expected = expected_search(space)
        # By then the share that passes has settled, where the number of trials is not known.
        trials = self._expected.trials if self._expected else MAX_SIMULATED_TRIALS
        self._passing = passing_of(space, trials, space.search.explore)
        self._quiet = quiet
        self._history = History()
        self._epoch_s: list[float] = []
        self._live = Live(console=console, refresh_per_second=2, transient=True) if self._shows_status else None
        self._refreshed_at = 0.0

    def __enter__(self) -> "SearchDisplay":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def observe(self, event: Event, history: History) -> None:
        """Take in an event of the search."""
        self._history = history
        match event:
            case EpochDone() | RunEpochDone():
                self._epoch_s.append(event.seconds)
            case TrialEnded():
                if event.status in ("failed", "diverged") or not self._quiet:
                    self._print(self._end_line(history.trials[event.trial]), _STYLES[event.status])
            case RunEnded():
                if event.status != "completed" or not self._quiet:
                    self._print(self._run_line(event), _STYLES[event.status])
        self.refresh()

    def note(self, message: str) -> None:
        """Print a line that is not a trial's end."""
        if not self._quiet:
            self._print(message, "yellow")

    def refresh(self) -> None:
        """Bring the status line up to date, at most twice a second."""
        if self._live and time.monotonic() - self._refreshed_at >= REFRESH_S:
            self._refreshed_at = time.monotonic()
            self._live.update(Text(self._status(), overflow="ellipsis", no_wrap=True))

    @property
    def _shows_status(self) -> bool:
        return self._console.is_terminal and not self._quiet

    def _print(self, line: str, style: str) -> None:
        line = printable(line)
        if self._shows_status:
            self._console.print(Text(line, style=style), no_wrap=True, overflow="ellipsis", crop=True)
        else:
            self._console.print(Text(line, style=style), soft_wrap=True)

    def _end_line(self, trial: Trial) -> str:
        accuracy = f"{trial.last.validation_accuracy:7.2%}" if trial.last and not trial.last.diverged else "      -"
        name = "baseline" if trial.baseline else f"trial {trial.number}"
        values = self._space.baseline_suggestion() if trial.baseline else trial.suggested
        line = f"{name:<10} {trial.status:<9} epoch {trial.n_epochs:>3}  {accuracy}  {compact(values)}"
        if trial.end and trial.status in ("failed", "diverged"):
            line += f"  ({trial.end.reason})"
        return line if self._shows_status else f"{line}  [{self._status()}]"

    def _run_line(self, event: RunEnded) -> str:
        run = self._history.runs[event.run]
        accuracy = f"{run.last.validation_accuracy:7.2%}" if run.last and not run.last.diverged else "      -"
        line = f"fresh run  {event.status:<9} epoch {run.n_epochs:>3}  {accuracy}  of trial {run.trial}"
        if event.reason:
            line += f"  ({event.reason})"
        return line if self._shows_status else f"{line}  [{self._status()}]"

    def _status(self) -> str:
        n_paused = sum(waits_at_rung(trial, self._space) for trial in self._history.unfinished)
        n_running = len(self._history.unfinished) + len(self._history.unfinished_runs) - n_paused
        n_runs_ended = len(self._history.runs) - len(self._history.unfinished_runs)
        parts = [
            f"{self._history.n_ended}{_of(self._space.search.trials)} trials",
            self._epochs_text(),
        ]
        if self._history.runs:
            parts.append(f"{n_runs_ended} fresh runs")
        if self._shows_status:
            parts.append(f"{n_running} running")
            if n_paused:
                parts.append(f"{n_paused} waiting")
        best = best_accuracy(self._history.trials.values())
        if best:
            parts.append(f"best {best[1]:.2%} (trial {best[0]})")
        left_s = self._left_s()
        if left_s:
            parts.append(f"about {duration_text(left_s)} left")
        return ", ".join(parts)

    def _epochs_text(self) -> str:
        epoch_budget = self._space.search.epoch_budget
        if epoch_budget is None:
            return f"{self._history.n_epochs} epochs"
        return f"{budget.epochs_trained(self._history)}/{epoch_budget} epochs"

    def _left_s(self) -> float | None:
        if not self._epoch_s:
            return None
        # The first epochs of each worker are slow; the latest ones say more of what is to come.
        recent = self._epoch_s[-20:]
        running = [self._epochs_left_of(trial) for trial in self._history.unfinished]
        unstarted = self._epochs_left_of_unstarted(sum(running))
        if unstarted is None:
            return None
        epochs_left = [*running, *unstarted, *self._epochs_left_of_runs(sum(running))]
        return seconds_left(epochs_left, sum(recent) / len(recent), self._trials_at_once)

    def _epochs_left_of_unstarted(self, epochs_to_come: float) -> list[float] | None:
        """Of each trial that is to be started, beside so many epochs of those that are; None if time alone tells."""
        if self._expected is None:
            return None
        search, max_epochs = self._space.search, self._space.training.max_epochs
        each = expected_epochs_left(0, self._space.rung_epochs, self._passing)
        each = search.explore * max_epochs + (1 - search.explore) * each
        n = search.most_trials - len(self._history.counting)
        if search.epoch_budget is not None:
            unspent = search.epoch_budget - budget.epochs_trained(self._history) - epochs_to_come
            n = min(n, math.ceil(unspent / each))
        return [each] * max(0, n)

    def _epochs_left_of_runs(self, epochs_to_come: float) -> list[float]:
        """Of each fresh run that is to come, if nobody is tied."""
        max_epochs = self._space.training.max_epochs
        begun = [float(max_epochs - run.n_epochs) for run in self._history.unfinished_runs]
        total = confirmation.expected_epochs(self._history.n_epochs + epochs_to_come, self._space)
        n_to_come = max(0, round(total / max_epochs) - len(self._history.runs))
        if self._history.runs and not confirmation.next_run(self._history, self._space):
            n_to_come = 0  # the order was clear early
        return begun + [float(max_epochs)] * n_to_come

    def _epochs_left_of(self, trial: Trial) -> float:
        if trial.baseline or trial.explored:
            return self._space.training.max_epochs - trial.n_epochs
        rungs = self._space.rung_epochs
        left = expected_epochs_left(trial.n_epochs, rungs, self._passing)
        return left * self._passing[rungs.index(trial.n_epochs)] if waits_at_rung(trial, self._space) else left


def _of(limit: int | None) -> str:
    return "" if limit is None else f"/{limit}"


def compact(values: Mapping[str, Number]) -> str:
    """Hyperparameters on one line, three significant digits each."""
    return " ".join(f"{SHORT_NAMES.get(name, name)}={short(value)}" for name, value in values.items())
