"""The screen of a running search, from its history. Pure functions; rich lays it out."""

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from heapq import nlargest

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from search.analysis.columns import compact
from search.analysis.cost import Remaining, recent_epoch_s, remaining
from search.analysis.ranking import Ranked, rank
from search.analysis.rung_statistics import rung_survival
from search.experiment.history import History, Replicate, Trial
from search.policy.budget import epochs_trained, n_to_start, trials_limit
from search.policy.replicate_statistics import replicate_results
from search.terminal.tables import GAP, STATUS_STYLES, fitting_columns
from spaces.counted import duration_text
from spaces.printable import printable
from spaces.schema import Space

N_BEST = 5
WIDE_COLUMNS = 110  # from this width on, rungs are beside the workers instead of below them
MOST_CURVE_COLUMNS = 30
MOST_RUNGS = 5  # below the workers, at least these are shown, or none
LEVELS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line of the list of events; `at` is in seconds since 1970 (UTC)."""

    at: float
    text: str
    style: str = ""


@dataclass(frozen=True)
class ScreenState:
    """Data of a screen.

    Attributes:
        trials_at_once: number of slots.
        epoch_images: number of training images of an epoch.
        now: seconds since 1970 (UTC).
        session_start: start of the session, in seconds since 1970 (UTC); None before the first session.
        budget_left_s: rest of the time budget; None without a time budget.
        notes: warnings and messages, which are not in the history.
        hint: meaning of the keys.
    """

    name: str
    space: Space
    history: History
    trials_at_once: int
    epoch_images: int
    now: float
    session_start: float | None = None
    budget_left_s: float | None = None
    notes: Sequence[LogLine] = ()
    hint: str = ""

    def left_s(self, left: Remaining) -> float | None:
        """Seconds until the end of the search; None where it is not known."""
        epoch_s = recent_epoch_s(self.history)
        return left.seconds(epoch_s, max(1, self.trials_at_once), self.budget_left_s)


@dataclass(frozen=True)
class _Section:
    """Rows of cells under a heading. A low screen shows the first rows only.

    Attributes:
        least: minimum number of rows; with less room, the section is left out.
        right: columns that are aligned to the right.
        counts_hidden: whether a last row says how many rows are hidden.
    """

    title: str
    rows: Sequence[Sequence[RenderableType]]
    least: int
    right: Collection[int] = ()
    counts_hidden: bool = False

    def shown(self, n_rows: int) -> Group:
        rows = list(self.rows[:n_rows])
        n_hidden = len(self.rows) - n_rows
        if n_hidden > 0 and self.counts_hidden and n_rows > 1:
            rows[-1] = [_text(f"and {n_hidden + 1} more", "dim")]
        return Group(Rule(_text(self.title), align="left", style="dim"), _grid(rows, self.right))


def screen(state: ScreenState, width: int, height: int) -> RenderableType:
    """The screen; rows that do not fit into `height` lines are left out."""
    left = remaining(state.history, state.space)
    bars = _bars(state, left, width)
    workers, rungs = _workers(state, width), _rungs(state)
    middle = [[workers, rungs]] if width >= WIDE_COLUMNS else [[workers], [rungs]]
    bands = [[_best(state, width)], *middle, [_events(state, height)]]
    return Group(_title(state, left), _grid(bars), *_stacked(bands, height - 1 - len(bars)))


def _stacked(bands: Sequence[Sequence[_Section]], room: int) -> list[Table]:
    """Bands of sections beside each other. The first bands get the lines that the minima of the later ones leave."""
    shown = []
    minima = [max(min(section.least, len(section.rows)) for section in band) for band in bands]
    for i, band in enumerate(bands):
        later = sum(minima[i + 1 :]) + len(bands[i + 1 :])
        n_rows = min(max(len(section.rows) for section in band), max(minima[i], room - 1 - later))
        if n_rows >= room:
            continue
        room -= n_rows + 1
        table = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for ratio in (11, 9)[: len(band)]:
            table.add_column(ratio=ratio)
        table.add_row(*(section.shown(n_rows) for section in band))
        shown.append(table)
    return shown


def sparkline(values: Sequence[float], low: float, high: float, width: int) -> str:
    """A curve as a row of `width` characters, of which the last shows the last value.

    `low` and `high` are the values of the lowest and the highest character.
    """
    n, top = len(values), len(LEVELS) - 1
    picked = [values[math.ceil((i + 1) * n / width) - 1] for i in range(width if n else 0)]
    shares = [(value - low) / (high - low) if high > low else 1.0 for value in picked]
    return "".join(LEVELS[min(top, max(0, int(share * len(LEVELS))))] for share in shares)


def end_text(one: Trial | Replicate) -> str:
    """What became of an ended trial or replicate, on one line."""
    assert one.end is not None
    result = "-" if one.last_score is None else one.metric.text(one.last_score)
    if isinstance(one, Replicate):
        name, of = "replicate", f"of trial {one.trial}"
    else:
        name, of = "baseline" if one.baseline else f"trial {one.number}", compact(one.suggested)
    reason = f"  ({one.end.reason})" if one.end.reason and one.end.status != "stopped" else ""
    return f"{name:<10} {one.end.status:<9} epoch {one.n_epochs:>3}  {result:>7}{reason}  {of}"


def _bars(state: ScreenState, left: Remaining, width: int) -> list[list[RenderableType]]:
    """Rows of trials, epochs and, where they have begun, replicates."""
    history, search = state.history, state.space.search
    statuses = [trial.status for trial in history.counting]
    counts = {status: statuses.count(status) for status in ("completed", "stopped", "failed", "diverged")}
    n_ended, n_epochs = history.n_ended, epochs_trained(history)
    n_trials, epochs = None, None
    if left.of_unstarted is not None:
        n_trials = n_ended + len(left.of_begun) + len(left.of_unstarted)
        epochs = n_epochs + sum(left.of_begun) + sum(left.of_unstarted)
    bars = [
        (
            "trials",
            n_ended,
            trials_limit(history, state.space),
            n_trials,
            ", ".join(f"{n} {status}" for status, n in counts.items() if n),
        ),
        ("epochs", n_epochs, search.epoch_budget, epochs, ""),
    ]
    if history.replicates:
        n_runs_ended = len(history.replicates) - len(history.unfinished_replicates)
        bars.append(("replicates", n_runs_ended, None, n_runs_ended + len(left.of_runs), "replicates of the best"))
    bar_width = min(max(width - 60, 8), 40)
    rows: list[list[RenderableType]] = []
    for name, done, most, expected, more in bars:
        total = expected if most is None else most
        of = "" if total is None else f" of {total}" if most is not None else f" of about {total:.0f}"
        bar = "" if total is None else _bar(done, total, bar_width)
        rows.append([name, bar, f"{done}{of}", _text(more, "dim")])
    return rows


def _title(state: ScreenState, left: Remaining) -> Table:
    """Name and state, which a narrow terminal cuts, and times."""
    name = _text(state.name, "bold")
    name.append(f"  {_doing(state, left)}", style="not bold cyan")
    times = []
    if state.session_start is not None:
        times.append(f"{timedelta(seconds=max(0, int(state.now - state.session_start)))} gone")
    if left_s := state.left_s(left):
        times.append(f"about {duration_text(left_s)} left")
    title = Table.grid(padding=(0, 2, 0, 0), expand=True)
    title.add_column(ratio=1)
    title.add_column(no_wrap=True)
    title.add_row(name, ", ".join(times))
    return title


def _doing(state: ScreenState, left: Remaining) -> str:
    history = state.history
    if _working_runs(state):
        return "training replicates of the best"
    if history.unfinished or n_to_start(history, state.space):
        return "searching" if history.n_epochs else "starting"
    return "replicates" if left.of_runs else "finished"


def _best(state: ScreenState, width: int) -> _Section:
    """The best trials as in the leaderboard, each with its curve; trials with replicates are shown first."""
    history, max_epochs = state.history, state.space.training.max_epochs
    replicates = replicate_results(history) if history.replicates else {}
    again = {run.trial for run in history.replicates.values()}
    counting = (row for row in rank(history) if not row.excluded)
    best = sorted(counting, key=lambda row: row.trial not in again)[:N_BEST]
    rows = [replace(row, replicates=replicates.get(row.trial)) for row in sorted(best, key=lambda row: row.rank)]
    if not rows:
        return _Section("best", [[_text("no trial has begun yet", "dim")]], least=1)
    curve_width = min(max_epochs * max(1, width // 5 // max_epochs), width // 5, MOST_CURVE_COLUMNS)
    curves = [list(history.trials[row.trial].scores.values()) for row in rows]
    values = [value for curve in curves for value in curve]
    columns = fitting_columns(rows, tuple(state.space.searched), width - curve_width - GAP)
    table = [[_text(heading, "dim") for heading in (*(column.heading for column in columns), "curve")]]
    for row, curve in zip(rows, curves, strict=True):
        n_characters = max(1, round(curve_width * len(curve) / max_epochs))
        line = sparkline(curve, min(values, default=0.0), max(values, default=1.0), n_characters)
        cells = [_text(column.text_of(row), _style(column.name, row)) for column in columns]
        table.append([*cells, _text(line, "green" if row.status == "completed" else "cyan")])
    return _Section("best", table, least=2, right=[i for i, column in enumerate(columns) if column.is_number])


def _style(column: str, row: Ranked) -> str:
    return STATUS_STYLES[row.status] if column == "status" else "bold" if column == "replicate_mean" else ""


def _workers(state: ScreenState, width: int) -> _Section:
    history = state.history
    # Trials are dispatched in order. If an earlier session had more slots, the last unfinished trials wait.
    working: list[Trial | Replicate] = [*history.unfinished[: state.trials_at_once], *_working_runs(state)]
    rows = [_worker_row(one, state, 10 if width < 150 else 18) for one in working]
    n_idle = max(0, state.trials_at_once - len(working))
    if n_idle:
        rows.append([_text("starting" if not working and not history.n_epochs else f"{n_idle} idle", "dim")])
    rates = [rate for one in working if (rate := _images_per_s(one, state))]
    together = f"  {sum(rates):,.0f} images/s together" if len(rates) > 1 else ""
    return _Section(f"workers{together}", rows, least=2, right=[3], counts_hidden=True)


def _working_runs(state: ScreenState) -> list[Replicate]:
    """Replicates that are trained now. Those of an earlier session wait until all trials have ended."""
    history = state.history
    if history.unfinished:
        return []
    if not n_to_start(history, state.space):
        return history.unfinished_replicates
    # More trials will start, unless the rest of a time budget is reserved for replicates.
    return [run for run in history.unfinished_replicates if _is_of_this_session(run, state)]


def _is_of_this_session(one: Trial | Replicate, state: ScreenState) -> bool:
    return (one.last.at if one.last else one.started_at) >= (state.session_start or 0.0)


def _worker_row(one: Trial | Replicate, state: ScreenState, bar_width: int) -> list[RenderableType]:
    max_epochs = state.space.training.max_epochs
    name = f"trial {one.number}" if isinstance(one, Trial) else f"run {one.number}, trial {one.trial}"
    rate = _images_per_s(one, state)
    since_s, since = state.now - (one.last.at if one.last else one.started_at), ""
    # The last epoch of an earlier session does not tell the time of this epoch.
    if one.last and since_s >= 0 and _is_of_this_session(one, state):
        since = f"{since_s:.0f} of about {one.last.seconds:.0f} s"
    return [
        name,
        f"epoch {min(one.n_epochs + 1, max_epochs)} of {max_epochs}",
        _bar(one.n_epochs, max_epochs, bar_width),
        f"{rate:,.0f} images/s" if rate else "- images/s",
        _text(since, "dim"),
    ]


def _images_per_s(one: Trial | Replicate, state: ScreenState) -> float | None:
    return state.epoch_images / one.last.train_s if one.last and one.last.train_s > 0 else None


def _rungs(state: ScreenState) -> _Section:
    *rungs, end = rung_survival(state.history.counting, state.space)
    rows: list[list[RenderableType]] = []
    for rung in rungs:
        share = f"{rung.passed / rung.entered:.0%}" if rung.entered else ""
        rows.append(
            [
                f"epoch {rung.epoch}",
                f"{rung.entered} entered",
                f"{rung.passed} went on",
                _bar(rung.passed, rung.entered, 10),
                _text(share, "dim"),
            ]
        )
    rows.append([f"epoch {end.epoch}", f"{end.passed} completed"])
    return _Section("rungs", rows, least=min(len(rows), MOST_RUNGS), right=[1, 2])


def _events(state: ScreenState, most: int) -> _Section:
    """The latest ends of trials and replicates, and notes; newest first."""
    ended = [(one.end, one) for one in state.history.work if one.end]
    latest = nlargest(max(0, most), ended, key=lambda pair: pair[0].at)
    lines = [LogLine(end.at, end_text(one), STATUS_STYLES[end.status]) for end, one in latest]
    rows = [
        [_text(time.strftime("%H:%M:%S", time.localtime(line.at)), "dim"), _text(line.text, line.style)]
        for line in sorted([*lines, *state.notes], key=lambda line: line.at, reverse=True)[:most]
    ]
    title = f"events  {state.hint}".rstrip()
    return _Section(title, rows or [[_text("nothing has ended yet", "dim")]], least=1)


def _grid(rows: Sequence[Sequence[RenderableType]], right: Collection[int] = ()) -> Table:
    """Rows in columns, of which those in `right` are aligned to the right. The last column is cut first."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    last = max(map(len, rows)) - 1
    for i in range(last + 1):
        grid.add_column(justify="right" if i in right else "left", no_wrap=i < last)
    for row in rows:
        grid.add_row(*row)
    return grid


def _text(text: str, style: str = "") -> Text:
    """One line, cut with an ellipsis where it does not fit. Control characters are made visible."""
    return Text(printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _bar(done: float, total: float, width: int) -> ProgressBar:
    return ProgressBar(
        total=total or 1, completed=done, width=width, style="dim", complete_style="green", finished_style="green"
    )
