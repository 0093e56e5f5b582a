"""What follows a running session: the display, the trackers, and the files that are derived from the journal."""

import time
from collections.abc import Callable, Sequence

from search.analysis.csv_files import write_tables
from search.execution.trackers import Tracker
from search.experiment.events import Event, TrialEnded
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.policy.study import write_study
from search.session import steering
from search.terminal.display import SearchDisplay
from spaces import Space

# Intervals of writing the derived files; longer where writing would take more than this fraction of the time.
TABLES_EVERY_S = 5.0
STUDY_EVERY_S = 60.0
MAX_WRITING_FRACTION = 0.02


class SessionObserver:
    """Shows each event, passes it to the trackers, and keeps tables and Optuna study near the journal.

    A `search.execution.ray_adapters.SearchObserver`.
    """

    def __init__(
        self, display: SearchDisplay, trackers: Sequence[Tracker], experiment: Experiment, space: Space
    ) -> None:
        self._display, self._trackers = display, trackers
        self._experiment, self._space = experiment, space
        self._tables, self._study = Throttle(TABLES_EVERY_S), Throttle(STUDY_EVERY_S)
        self.note, self.on_idle, self.close = display.note, display.refresh, display.close
        steering.forget(experiment)

    def on_event(self, event: Event, history: History) -> None:
        if isinstance(event, TrialEnded):
            self._tables.act_if_due(lambda: write_tables(self._experiment, history))
            self._study.act_if_due(lambda: self._write_study(history))
        self._display.observe(event, history)
        for tracker in self._trackers:
            tracker.on_event(event, history)

    def requests(self) -> list[Event]:
        return list(steering.received(self._experiment, self.note))

    def on_end(self, history: History) -> None:
        steering.close(self._experiment)
        write_tables(self._experiment, history)
        self._write_study(history)
        for tracker in self._trackers:
            tracker.close()

    def _write_study(self, history: History) -> None:
        write_study(self._experiment.folder / "study.db", self._space, history)


class Throttle:
    """Limits how often an action runs: once in `every_s`, and for at most `MAX_WRITING_FRACTION` of the time."""

    def __init__(self, every_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._now = now
        self._due_s = now() + every_s

    def act_if_due(self, action: Callable[[], None]) -> None:
        started_s = self._now()
        if started_s >= self._due_s:
            action()
            ended_s = self._now()
            self._due_s = max(started_s + self._every_s, ended_s + (ended_s - started_s) / MAX_WRITING_FRACTION)
