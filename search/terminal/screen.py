"""The screen of a running search: pure functions from its history to lines that fit."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nlargest

from rich.cells import cell_len
from rich.text import Text

from search.analysis.columns import compact, counted_replicate_text, exemption
from search.analysis.cost import Remaining
from search.analysis.ranking import Ranked, rank
from search.analysis.rung_statistics import rung_survival
from search.experiment.history import History, Replicate, Trial
from search.policy.asha import waits_at_rung
from search.policy.budget import epochs_trained, n_to_start
from search.policy.replicate_statistics import ReplicateSummary, replicate_results
from search.terminal.tables import STATUS_STYLES
from spaces.counted import duration_text
from spaces.parameters import Number
from spaces.printable import printable
from spaces.schema import Space

N_BEST = 5
WIDE_COLUMNS = 110  # from this width on, rungs are beside the workers instead of below them
MOST_CURVE_COLUMNS = 30
MOST_RUNGS = 5  # below the workers, at least these are shown, or none
PARAMETER_COLUMNS = 16  # reserved for hyperparameters beside curves
_GAP = "  "
_LONGEST_FIGURE = 12
# Columns that a narrow terminal leaves out, in this order.
_MISSED_FIRST = ("epochs", "status", "accuracy")
_MORE_EVENTS_THAN_ROWS = 200


# Columns of the best trials between the rank and the replicates.
_COLUMNS = {"trial": "%-14s", "status": "%-9s", "epochs": "%6s", "accuracy": "%8s"}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters of curves, bars and headings.

    Attributes:
        levels: levels of a curve, lowest first.
        full, empty: parts of a bar.
        line: line of a heading.
        points: end of a text that was cut.
    """

    levels: str
    full: str
    empty: str
    line: str
    points: str


UNICODE = Glyphs("▁▂▃▄▅▆▇█", "━", "─", "─", "…")
ASCII = Glyphs("_.-~=+*#", "#", ".", "-", "~")


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
        name: name of the experiment.
        space: the searched space.
        history: of the search so far.
        remaining: epochs that are left.
        left_s: seconds until the end of the search; None where it is not known.
        trials_at_once: number of slots.
        epoch_images: number of training images of an epoch.
        now: seconds since 1970 (UTC).
        elapsed_s: seconds since the session began; None where it is not known.
        notes: warnings and messages, which are not in the history.
        hint: meaning of the keys.
    """

    name: str
    space: Space
    history: History
    remaining: Remaining
    left_s: float | None
    trials_at_once: int
    epoch_images: int
    now: float
    elapsed_s: float | None = None
    notes: Sequence[LogLine] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Bar:
    """A progress bar; `total` is None where it is not known."""

    name: str
    done: float
    total: float | None
    text: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class _Block:
    """Lines under a heading. A low screen shows the first lines only.

    Attributes:
        title: of the heading.
        lines: all lines.
        least: minimum number of lines; with less room, the block is left out.
        beside: a block to the right, which is not shortened.
    """

    title: str
    lines: Sequence[Text]
    least: int
    beside: "_Block | None" = None

    @property
    def n_beside(self) -> int:
        return len(self.beside.lines) if self.beside else 0

    @property
    def n_least(self) -> int:
        return max(min(self.least, len(self.lines)), self.n_beside)

    @property
    def n_most(self) -> int:
        return max(len(self.lines), self.n_beside)


def screen(scene: ScreenState, width: int, height: int, glyphs: Glyphs = UNICODE) -> list[Text]:
    """Lines of the screen: at most `height` lines of at most `width` cells."""
    if width < 1 or height < 1:
        return []
    header = _header(scene, width, glyphs)
    room = height - len(header)
    best, rungs, events = _best(scene, width, glyphs), _rungs(scene, glyphs), _events(scene, room)
    # In a low terminal, many rungs would leave no lines for the workers.
    if width >= WIDE_COLUMNS and room >= best.n_least + len(rungs.lines) + 2:
        workers = _workers(scene, _left_width(width), glyphs)
        blocks = [best, replace(workers, beside=rungs), events]
    else:
        blocks = [best, _workers(scene, width, glyphs), rungs, events]
    body = _stack(_fitting(blocks, room), width, glyphs)
    lines = [*header, *body][:height]
    for line in lines:
        _cut(line, width, glyphs)
    return lines


def sparkline(values: Sequence[float], low: float, high: float, width: int, glyphs: Glyphs = UNICODE) -> str:
    """A curve as a row of at most `width` characters. Of more values, some are left out, but not the last.

    Args:
        values: of the curve, in order.
        low, high: values of the lowest and the highest character.
        width: in characters.
        glyphs: characters of the terminal.
    """
    if len(values) > width > 0:
        last = len(values) - 1
        values = [values[round(i * last / max(width - 1, 1)) if width > 1 else last] for i in range(width)]
    n_levels = len(glyphs.levels)
    span = high - low
    shares = [(value - low) / span if span > 0 else 1.0 for value in values] if width > 0 else []
    return "".join(glyphs.levels[min(n_levels - 1, max(0, int(share * n_levels)))] for share in shares)


def latest_log_lines(history: History, notes: Iterable[LogLine], most: int) -> list[LogLine]:
    """The latest ends of trials and replicates, and notes; newest first, at most `most`."""
    trials = (trial for trial in history.trials.values() if trial.end)
    runs = (run for run in history.replicates.values() if run.end)
    ended: list[Trial | Replicate] = nlargest(most, trials, key=_ended_at)
    ended += nlargest(most, runs, key=_ended_at)
    each = [*map(_log_line_of, ended), *notes]
    return sorted(each, key=lambda one: one.at, reverse=True)[:most]


def clock_text(seconds: float) -> str:
    """`1:05`, `2:03:04`."""
    minutes, s = divmod(max(0, int(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def _header(scene: ScreenState, width: int, glyphs: Glyphs) -> list[Text]:
    history, left = scene.history, scene.remaining
    counting = history.counting
    n_ended = sum(trial.end is not None for trial in counting)
    statuses = ("completed", "stopped", "failed", "diverged")
    counts = {status: sum(trial.status == status for trial in counting) for status in statuses}
    counted = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    title = _title(scene, width, glyphs)
    n_runs_ended = len(history.replicates) - len(history.unfinished_replicates)
    bars = [_trials_bar(scene, n_ended, counted), _epochs_bar(scene)]
    if history.replicates:
        n_runs = n_runs_ended + len(left.of_runs)
        text = f"{n_runs_ended} of about {n_runs}"
        bars.append(_Bar("replicates", n_runs_ended, n_runs, text, "replicates of the best"))
    return [title, *(_bar_line(bar, width, glyphs) for bar in bars)]


def _title(scene: ScreenState, width: int, glyphs: Glyphs) -> Text:
    """Name, state and times. A narrow screen keeps the time left."""
    title = Text(printable(scene.name), style="bold")
    title.append(f"{_GAP}{_state(scene)}", style="cyan")
    left = f"about {duration_text(scene.left_s)} left" if scene.left_s else ""
    gone = f"{clock_text(scene.elapsed_s)} gone" if scene.elapsed_s is not None else ""
    times = ", ".join(filter(None, (gone, left)))
    if left and title.cell_len + len(_GAP) + len(times) > width:
        times = left
    room = width - len(times) - len(_GAP)
    if left and room > 0:
        _cut(title, room, glyphs)
    _cut(title, width, glyphs)
    _append_at_right(title, Text(times), width)
    return title


def _trials_bar(scene: ScreenState, n_ended: int, counted: str) -> _Bar:
    left, trials = scene.remaining, scene.space.search.trials
    if trials is not None:
        return _Bar("trials", n_ended, trials, f"{n_ended} of {trials}", counted)
    expected = None if left.of_unstarted is None else n_ended + len(left.of_begun) + len(left.of_unstarted)
    text = f"{n_ended}" if expected is None else f"{n_ended} of about {expected}"
    return _Bar("trials", n_ended, expected, text, counted)


def _epochs_bar(scene: ScreenState) -> _Bar:
    n_epochs, epoch_budget = epochs_trained(scene.history), scene.space.search.epoch_budget
    if epoch_budget is not None:
        return _Bar("epochs", n_epochs, epoch_budget, f"{n_epochs} of {epoch_budget}")
    left = scene.remaining.trial_epochs
    if left is None:
        return _Bar("epochs", n_epochs, None, f"{n_epochs}")
    return _Bar("epochs", n_epochs, n_epochs + left, f"{n_epochs} of about {n_epochs + left:.0f}")


def _bar_line(bar: _Bar, width: int, glyphs: Glyphs) -> Text:
    line = Text(f"{bar.name:<7}")
    if bar.total is not None:
        line.append_text(_bar(bar.done / bar.total if bar.total else 0.0, min(max(width - 60, 8), 40), glyphs))
        line.append(" ")
    line.append(bar.text)
    if bar.more:
        line.append(f"{_GAP}{bar.more}", style="dim")
    return line


def _state(scene: ScreenState) -> str:
    history = scene.history
    if _working_runs(scene):
        return "training the best again with fresh seeds"
    if history.unfinished or n_to_start(history, scene.space):
        return "searching" if history.n_epochs else "starting"
    return "replicates" if scene.remaining.of_runs else "finished"


def _best(scene: ScreenState, width: int, glyphs: Glyphs) -> _Block:
    history = scene.history
    replicates = replicate_results(history) if history.replicates else {}
    ranked = [row for row in rank(history) if not row.excluded]
    if history.replicates:
        # While replicates run, their trials are shown first.
        again = {run.trial for run in history.replicates.values()}
        ranked = [row for row in ranked if row.trial in again] + [row for row in ranked if row.trial not in again]
    rows = sorted(ranked[:N_BEST], key=lambda row: row.rank)
    found = [replicates[row.trial] for row in rows if row.trial in replicates]
    replicate_texts = [counted_replicate_text(summary) for summary in found]
    replicate_width = max(20, *(len(text) + len(_GAP) for text in replicate_texts)) if replicate_texts else 0
    shown_columns = _columns_that_fit(width - replicate_width)
    max_epochs = scene.space.training.max_epochs
    curve_width = _curve_width(max_epochs, width, replicate_width)
    curves = {row.trial: _curve(history.trials[row.trial]) for row in rows}
    shown = [value for curve in curves.values() for value in curve]
    low, high = min(shown, default=0.0), max(shown, default=1.0)
    heading = " ".join([f"{'':>2}", *(_COLUMNS[name] % name for name in shown_columns)]) + _GAP
    heading += ("replicates".ljust(replicate_width) if replicate_width else "") + (
        "curve" if curve_width >= len("curve") else ""
    )
    lines = [Text(heading, style="dim")]
    for row in rows:
        curve = _sparkline_to_scale(curves[row.trial], low, high, max_epochs, curve_width, glyphs)
        line = _best_line(row, shown_columns, curve.ljust(curve_width), replicates.get(row.trial), replicate_width)
        values = {name: getattr(row.config, name) for name in scene.space.searched}
        if fitting := _those_that_fit(values, width - line.cell_len - len(_GAP)):
            line.append(_GAP + fitting, style="dim")
        lines.append(line)
    if not rows:
        lines = [Text("no trial has begun yet", style="dim")]
    return _Block("best", lines, least=2)


def _curve_width(max_epochs: int, width: int, replicate_width: int) -> int:
    """Characters for a curve of `max_epochs`."""
    # A narrow terminal has no room for replicates, curves and hyperparameters together.
    parameter_columns = 0 if replicate_width and width < WIDE_COLUMNS else PARAMETER_COLUMNS
    most = min(MOST_CURVE_COLUMNS, max(0, width - 45 - replicate_width - parameter_columns))
    # A whole number of characters for each epoch; with less than one, some epochs are left out.
    return min(max_epochs * max(1, most // max_epochs), most)


def _sparkline_to_scale(
    values: Sequence[float], low: float, high: float, max_epochs: int, width: int, glyphs: Glyphs
) -> str:
    """A curve in the scale in which `max_epochs` epochs fill `width` characters; at least one character."""
    n_characters = max(1, round(width * len(values) / max_epochs)) if width else 0
    each = max(1, width // max_epochs)
    return sparkline([value for value in values for _ in range(each)], low, high, n_characters, glyphs)


def _those_that_fit(values: Mapping[str, Number], room: int) -> str:
    while values and len(compact(values)) > room:
        values = dict(list(values.items())[:-1])
    return compact(values)


def _columns_that_fit(width: int) -> list[str]:
    shown = list(_COLUMNS)
    for name in _MISSED_FIRST:
        if len(" ".join(["", "", "", *(_COLUMNS[each] % each for each in shown)])) > width:
            shown.remove(name)
    return shown


def _best_line(
    row: Ranked, columns: Sequence[str], curve: str, replicates: ReplicateSummary | None, replicate_width: int
) -> Text:
    accuracy = "-" if row.validation_accuracy is None else f"{row.validation_accuracy:.2%}"
    cells = {
        "trial": f"{row.trial} {exemption(row)}".rstrip(),
        "status": row.status,
        "epochs": str(row.epochs),
        "accuracy": accuracy,
    }
    line = Text(f"{row.rank:>2}")
    for name in columns:
        line.append(" ")
        line.append(_COLUMNS[name] % cells[name], style=STATUS_STYLES[row.status] if name == "status" else "")
    line.append(_GAP)
    again = counted_replicate_text(replicates) if replicates else ""
    line.append(f"{again:<{replicate_width}}" if replicate_width else "", style="bold")
    line.append(curve, style="green" if row.status == "completed" else "cyan")
    return line


def _curve(trial: Trial) -> list[float]:
    return [epoch.validation_accuracy for epoch in trial.epochs if not epoch.diverged]


def _workers(scene: ScreenState, width: int, glyphs: Glyphs) -> _Block:
    history = scene.history
    # Trials are dispatched in order. If an earlier session had more slots, the last unfinished trials wait.
    working: list[Trial | Replicate] = [*_working_trials(scene)[: scene.trials_at_once], *_working_runs(scene)]
    lines = [_worker_line(one, scene, width, glyphs) for one in working]
    n_empty = max(0, scene.trials_at_once - len(working))
    if n_empty and not working and not history.n_epochs:
        lines.append(Text("starting", style="dim"))
    elif n_empty:
        lines.append(Text(f"{n_empty} idle", style="dim"))
    rates = [rate for one in working if (rate := _images_per_s(one, scene.epoch_images))]
    together = f"{_GAP}{sum(rates):,.0f} images/s together" if len(rates) > 1 else ""
    return _Block(f"workers{together}", lines, least=2)


def _working_trials(scene: ScreenState) -> list[Trial]:
    return [trial for trial in scene.history.unfinished if not waits_at_rung(trial, scene.space)]


def _working_runs(scene: ScreenState) -> list[Replicate]:
    """Replicates that are trained now. Those of an earlier session wait until all trials have ended."""
    history = scene.history
    if _working_trials(scene):
        return []
    if not n_to_start(history, scene.space):
        return history.unfinished_replicates
    # More trials will start, unless the rest of a time budget is reserved for replicates.
    return [run for run in history.unfinished_replicates if _is_of_this_session(run, scene)]


def _is_of_this_session(one: Trial | Replicate, scene: ScreenState) -> bool:
    began_at = scene.now - scene.elapsed_s if scene.elapsed_s is not None else 0.0
    return (one.last.at if one.last else one.started_at) >= began_at


def _worker_line(one: Trial | Replicate, scene: ScreenState, width: int, glyphs: Glyphs) -> Text:
    max_epochs = scene.space.training.max_epochs
    name = f"trial {one.number}" if isinstance(one, Trial) else f"run {one.number}, trial {one.trial}"
    rate = _images_per_s(one, scene.epoch_images)
    line = Text(f"{name:<15} epoch {min(one.n_epochs + 1, max_epochs):>3} of {max_epochs:<4}")
    line.append_text(_bar(one.n_epochs / max_epochs, 10 if width < 90 else 18, glyphs))
    line.append(f" {rate:>6,.0f} images/s" if rate else f" {'-':>6} images/s")
    since_s = scene.now - (one.last.at if one.last else one.started_at)
    # The last epoch of an earlier session does not tell the time of this epoch.
    if one.last and since_s >= 0 and _is_of_this_session(one, scene):
        since = f"{_GAP}{since_s:.0f} s of about {one.last.seconds:.0f}"
        line.append(since if line.cell_len + len(since) <= width else "", style="dim")
    return line


def _images_per_s(one: Trial | Replicate, epoch_images: int) -> float | None:
    return epoch_images / one.last.train_s if one.last and one.last.train_s > 0 else None


def _rungs(scene: ScreenState, glyphs: Glyphs) -> _Block:
    lines = []
    *rungs, end = rung_survival(scene.history.counting, scene.space)
    for rung in rungs:
        passed = rung.passed / rung.entered if rung.entered else 0.0
        line = Text(f"epoch {rung.epoch:<4}{rung.entered:>4} entered {rung.passed:>4} went on  ")
        line.append_text(_bar(passed, 10, glyphs))
        share = f" {passed:>4.0%}" if rung.entered else ""
        line.append(f" {rung.waiting} wait" if rung.waiting else share, style="dim")
        lines.append(line)
    lines.append(Text(f"epoch {end.epoch:<4}{end.passed:>4} completed"))
    return _Block("rungs", lines, least=min(len(lines), MOST_RUNGS))


def _events(scene: ScreenState, room: int) -> _Block:
    lines = []
    for one in latest_log_lines(scene.history, scene.notes, min(max(room, 0), _MORE_EVENTS_THAN_ROWS)):
        line = Text()
        line.append(f"{time.strftime('%H:%M:%S', time.localtime(one.at))} ", style="dim")
        line.append(printable(one.text), style=one.style or "default")
        lines.append(line)
    if not lines:
        lines = [Text("nothing has ended yet", style="dim")]
    return _Block(f"events{_GAP}{scene.hint}" if scene.hint else "events", lines, least=1)


def _ended_at(one: Trial | Replicate) -> float:
    return one.end.at if one.end else 0.0


def _log_line_of(one: Trial | Replicate) -> LogLine:
    assert one.end is not None
    accuracy = f"{one.last.validation_accuracy:.2%}" if one.last and not one.last.diverged else ""
    if isinstance(one, Trial):
        name = f"trial {one.number}" + (f" ({exempt})" if (exempt := exemption(one)) else "")
    else:
        name = f"replicate {one.number} of trial {one.trial}"
    said = one.end.reason or accuracy
    return LogLine(one.end.at, f"{name} {one.end.status}: {said}", STATUS_STYLES[one.end.status])


def _bar(share: float, width: int, glyphs: Glyphs) -> Text:
    n_full = round(min(max(share, 0.0), 1.0) * width)
    bar = Text(glyphs.full * n_full, style="green")
    bar.append(glyphs.empty * (width - n_full), style="dim")
    return bar


def _fitting(blocks: Sequence[_Block], room: int) -> list[_Block]:
    """Blocks shortened to `room` lines, headings included; blocks that do not fit are left out.

    Each block first gets its minimum, in order; then the first blocks that are not complete get the rest.
    """
    given: dict[int, int] = {}
    left = room
    for number, block in enumerate(blocks):
        if left >= block.n_least + 1:
            given[number] = block.n_least
            left -= block.n_least + 1
    for number in given:
        more = min(left, blocks[number].n_most - given[number])
        given[number] += more
        left -= more
    return [_shortened(blocks[number], n_lines) for number, n_lines in given.items()]


def _shortened(block: _Block, n_lines: int) -> _Block:
    n_hidden = len(block.lines) - n_lines
    if n_hidden > 0 and n_lines > 1 and block.title.startswith("workers"):
        last = Text(f"and {n_hidden + 1} more", style="dim")
        return replace(block, lines=[*block.lines[: n_lines - 1], last])
    return replace(block, lines=block.lines[:n_lines])


def _stack(blocks: Sequence[_Block], width: int, glyphs: Glyphs) -> list[Text]:
    lines = []
    for one in blocks:
        block = _joined(one, one.beside, _left_width(width), glyphs) if one.beside else one
        heading = f"{glyphs.line * 2} {block.title} "
        lines.append(Text(heading + glyphs.line * max(0, width - cell_len(heading)), style="dim"))
        lines += block.lines
    return lines


def _left_width(width: int) -> int:
    """Of two blocks beside each other."""
    return (width - len(_GAP)) * 11 // 20


def _joined(left: _Block, right: _Block, left_width: int, glyphs: Glyphs) -> _Block:
    """Two blocks as one, with all lines of both."""
    lines = []
    for number in range(max(len(left.lines), len(right.lines))):
        line = left.lines[number].copy() if number < len(left.lines) else Text("")
        if number < len(right.lines):
            _cut(line, left_width, glyphs)
            line.append(" " * (left_width - line.cell_len) + _GAP)
            line.append_text(right.lines[number])
        lines.append(line)
    heading = f"{left.title} "
    heading += glyphs.line * max(0, left_width - cell_len(heading) - 3)
    return replace(left, title=f"{heading}{_GAP}{glyphs.line * 2} {right.title}", lines=lines, beside=None)


def _append_at_right(line: Text, right: Text, width: int) -> None:
    n_between = width - line.cell_len - right.cell_len
    if n_between >= len(_GAP):
        line.append(" " * n_between)
        line.append_text(right)


def _cut(line: Text, width: int, glyphs: Glyphs) -> None:
    if line.cell_len > width:
        text = line.plain
        line.truncate(width - 1, overflow="crop")
        n_begun = len(line.plain) - line.plain.rfind(" ") - 1
        # A part of a figure would be read as a figure.
        if n_begun <= _LONGEST_FIGURE < len(line.plain) and not text[len(line.plain)].isspace():
            line.right_crop(n_begun)
        line.append(glyphs.points)
