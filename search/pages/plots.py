"""The figures of a report. Pure functions of the history; text from a folder is escaped in every figure.

Optuna's own figures show completed trials only, and ASHA completes about one trial in five; ours show all.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter
from typing import Any

import plotly.graph_objects as go

from search.analysis.columns import short, short_name
from search.analysis.importance import Importance
from search.experiment.final_results import FinalResults
from search.experiment.history import Replicate, Trial
from search.pages.page import BLUE, GREY, LINE, MUTED, ORANGE, PAPER, PURPLE, TEXT, Shade
from spaces.parameters import Choice, LogUniform, Number, Searched
from spaces.printable import printable
from spaces.schema import Space
from trainable.metric import ACCURACY, Metric

MOST_CURVES = 300  # more lines cannot be distinguished, and slow a page down
MOST_POINTS = 2000
MOST_ANNOTATED_CLASSES = 20
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class Group:
    """Style of a kind of trial."""

    name: str
    colour: Shade
    width: float
    dash: str
    symbol: str


_STOPPED = Group("stopped", GREY, 1.2, "solid", "circle-open")
_FAILED = Group("failed or diverged", PURPLE, 1.5, "dot", "x")
_RUNNING = Group("running", MUTED, 1.5, "dash", "diamond-open")
_UNFINISHED = replace(_RUNNING, name="unfinished")  # a running trial of a search that does not run
_COMPLETED = Group("completed", BLUE, 1.5, "solid", "circle")
_BASELINE = Group("baseline", ORANGE, 2.5, "dash", "square")
_WINNER = Group("winner", TEXT, 3.5, "solid", "star")
_REST = Group("other trials", GREY, 1.2, "solid", "circle-open")
_BEST_QUARTER = Group("best quarter", BLUE, 2, "solid", "circle")
# In the order of drawing: later groups cover earlier ones.
_GROUPS = (_STOPPED, _FAILED, _RUNNING, _UNFINISHED, _COMPLETED, _REST, _BEST_QUARTER, _BASELINE, _WINNER)
BY_STATUS = {"stopped": _STOPPED, "failed": _FAILED, "diverged": _FAILED, "running": _RUNNING, "completed": _COMPLETED}

PERCENT = {"tickformat": ".0%"}
_Points = list[tuple[float, float, str]]  # x, y and hover text of each point of a trial's line


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of the parallel coordinates: its heading, the values at its ends, its scale, and a trial's value."""

    name: str
    low: float
    high: float
    value: Callable[[Trial], float]
    text: Callable[[float], str] = short
    scale: Callable[[float], float] = float

    def position(self, trial: Trial) -> float:
        """0 at the low end, 1 at the high end; 0.5 where the ends are equal."""
        low, high = self.scale(self.low), self.scale(self.high)
        return (self.scale(self.value(trial)) - low) / (high - low) if high > low else 0.5


def drawn(trials: Sequence[Trial], winner: int | None, n_most: int) -> list[Trial]:
    """At most `n_most` of `trials`: the winner, the baseline, and evenly spaced others."""
    if len(trials) <= n_most:
        return list(trials)
    kept = [trial for trial in trials if trial.number == winner or trial.baseline]
    others = [trial for trial in trials if trial.number != winner and not trial.baseline]
    n_others = n_most - len(kept)
    return kept + [others[i * len(others) // n_others] for i in range(n_others)]


def styled_figure(
    x_title: str, y_title: str, height_px: int, traces: Sequence[Any], x: Mapping[str, Any], y: Mapping[str, Any]
) -> go.Figure:
    """Traces in axes in the style of the pages; `x` and `y` are more settings of the axes."""
    axis = {"gridcolor": LINE.light, "linecolor": LINE.light, "zeroline": False, "automargin": True}
    layout = {
        "template": "none",
        "height": height_px,
        "margin": {"l": 60, "r": 16, "t": 30, "b": 50},
        "paper_bgcolor": PAPER.light,
        "plot_bgcolor": PAPER.light,
        "font": {"color": TEXT.light, "family": FONT, "size": 13},
        "hoverlabel": {"font": {"family": FONT}},
        "hovermode": "closest",
        "showlegend": False,  # the page has a legend of its own, for keyboards and narrow screens
        "xaxis": {"title": {"text": x_title, "standoff": 8}, **axis, **x},
        "yaxis": {"title": {"text": y_title, "standoff": 8}, **axis, **y},
    }
    return go.Figure(traces, layout)


def learning_curves(
    trials: Sequence[Trial], winner: int | None, rung_epochs: Sequence[int], is_live: bool
) -> go.Figure:
    """The metric on the validation images over epochs, a trace for each kind of trial.

    Args:
        trials: trials inside the space; the names of traces count all of them, drawn or not.
        rung_epochs: ASHA's rungs; the last is the end of training.
    """

    metric = _metric_of(trials)

    def points(trial: Trial) -> _Points:
        name, scores = f"trial {trial.number}, epoch", trial.scores
        return [(i, metric.value(score), f"{name} {i}: {metric.text(score)}") for i, score in scores.items()]

    traces = []
    n_of_kind = {group: len(members) for group, members in _by_kind(trials, winner, is_live)}
    for group, members in _by_kind(drawn(trials, winner, MOST_CURVES), winner, is_live):
        trace = _lines(group, [points(trial) for trial in members])
        trace.update(mode="lines+markers", marker=_marker(group, 4 + group.width))
        if group not in (_BASELINE, _WINNER):
            trace.update(name=f"{group.name} ({n_of_kind[group]:,})")
        traces.append(trace)
    whole_numbers = {"dtick": 1, "tick0": 0} if rung_epochs[-1] <= 12 else {"tickformat": ",d"}
    x = {"rangemode": "tozero", **whole_numbers}
    figure = styled_figure("epoch", f"validation {metric.title}", 380, traces, x, metric_axis(metric))
    for epoch in rung_epochs[:-1]:
        mark_at(figure, epoch, f"rung {epoch}", MUTED, {"width": 1, "dash": "dot"})
    return figure


def optimisation_history(trials: Sequence[Trial], winner: int | None, is_live: bool) -> go.Figure:
    """Last value of the metric of each trial by its number, and the best completed trial so far."""
    metric = _metric_of(trials)
    completed = [trial for trial in _with_end(trials) if trial.status == "completed"]
    traces = []
    if completed:
        best = list(accumulate((trial.last_value or 0.0 for trial in completed), min if metric.is_loss else max))
        line = {"color": BLUE.light, "width": 2, "shape": "hv"}
        # Without `skip`, hovering shows the line instead of the trials on it.
        more = {"name": "best completed so far", "mode": "lines", "line": line, "hoverinfo": "skip"}
        traces.append(go.Scatter(x=[trial.number for trial in completed], y=best, **more))
    for group, members in _by_kind(_with_end(drawn(trials, winner, MOST_POINTS)), winner, is_live):
        traces.append(_points(group, members, [trial.number for trial in members]))
    title = f"validation {metric.title} where it ended"
    return styled_figure("trial", title, 380, traces, {}, metric_axis(metric))


def parallel_coordinates(space: Space, trials: Sequence[Trial], winner: int | None) -> go.Figure | None:
    """A line for each trial through its hyperparameters to its metric; None without a trial that has a result.

    Plotly's own parallel coordinates need WebGL and have no hover text; these are lines.
    """
    shown = _with_end(drawn(trials, winner, MOST_CURVES))
    if not shown:
        return None
    axes = _axes(space, shown)

    def points(trial: Trial) -> _Points:
        texts = [f"trial {trial.number}: {axis.name} {axis.text(axis.value(trial))}" for axis in axes]
        return [(i, axis.position(trial), text) for i, (axis, text) in enumerate(zip(axes, texts, strict=True))]

    traces = [_lines(group, [points(trial) for trial in members]) for group, members in _by_quarter(shown, winner)]
    x = {"gridcolor": MUTED.light, "range": [-0.3, len(axes) - 0.7], "tickvals": list(range(len(axes)))}
    y = {"visible": False, "range": [-0.1, 1.1], "fixedrange": True}
    figure = styled_figure("", "", 420, traces, {**x, "ticktext": [axis.name for axis in axes]}, y)
    font = {"color": MUTED.light, "size": 12}
    figure.update_layout(
        margin={"l": 10, "r": 10, "t": 10, "b": 40},
        annotations=[
            {"x": i, "y": y, "text": axis.text(value), "showarrow": False, "yshift": shift, "font": font}
            for i, axis in enumerate(axes)
            for y, shift, value in ((0, -12, axis.low), (1, 12, axis.high))
        ],
    )
    return figure


def importance_bars(importance: Importance) -> go.Figure:
    """Share of the variance that each hyperparameter explains, and the largest share that chance explains."""
    shares = importance.shares
    colours = [BLUE.light if name in importance.found else GREY.light for name in shares]
    trace = bars(shares, {"color": colours}, "%{y}: %{x:.1%}<extra></extra>")
    title = "share of the variance between trials that it explains alone"
    x = {"rangemode": "tozero", **PERCENT}
    figure = styled_figure(title, "", 110 + 34 * len(shares), [trace], x, {"autorange": "reversed"})
    mark_at(figure, importance.by_chance, "chance", ORANGE, {"width": 2, "dash": "dash"})
    return figure


def slices(space: Space, trials: Sequence[Trial], winner: int | None, is_live: bool) -> dict[str, go.Figure]:
    """Last value of the metric of each trial against each searched hyperparameter, by the hyperparameter's name."""
    shown = _with_end(drawn(trials, winner, MOST_POINTS))
    figures = {}
    for name, parameter in space.searched.items():
        traces = []
        for group, members in _by_kind(shown, winner, is_live):
            values: list[Number] = [getattr(trial.config, name) for trial in members]
            x = [short(value) for value in values] if isinstance(parameter, Choice) else values
            traces.append(_points(group, members, x))
        figure = styled_figure(name, "", 240, traces, _slice_axis(parameter), metric_axis(_metric_of(trials)))
        figures[name] = figure.update_layout(margin={"l": 45, "r": 10, "t": 10, "b": 45})
    return figures


def confusion(results: FinalResults) -> go.Figure:
    """The confusion matrix; colours are shares of the true class."""
    n_classes = len(results.class_names)
    # plotly interprets tags, and merges equal categories.
    names = _distinct([html.escape(printable(name[:40])) for name in results.class_names])
    cells = go.Heatmap(
        z=[[count / max(1, sum(row)) for count in row] for row in results.confusion_matrix],
        x=names,
        y=names,
        customdata=results.confusion_matrix,
        zmin=0,
        zmax=1,
        colorscale=[[0, PAPER.light], [1, BLUE.light]],
        showscale=False,
        xgap=1,
        ygap=1,
        text=[[str(count) for count in row] for row in results.confusion_matrix],
        texttemplate="%{text}" if n_classes <= MOST_ANNOTATED_CLASSES else None,
        hovertemplate="true %{y}, predicted %{x}: %{customdata} (%{z:.1%})<extra></extra>",
    )
    x = {"type": "category", "showgrid": False}
    height_px = min(900, 200 + 30 * n_classes)
    return styled_figure("predicted class", "true class", height_px, [cells], x, {**x, "autorange": "reversed"})


def _by_kind(trials: Iterable[Trial], winner: int | None, is_live: bool) -> list[tuple[Group, list[Trial]]]:
    """Trials by status; the winner and the baseline are groups of their own."""
    return _grouped(trials, winner, lambda trial: group_of(trial, is_live))


def group_of(one: Trial | Replicate, is_live: bool) -> Group:
    """The style of a trial or replicate by its status; where no search `is_live`, running ones are unfinished."""
    return _UNFINISHED if one.status == "running" and not is_live else BY_STATUS[one.status]


def _by_quarter(trials: Sequence[Trial], winner: int | None) -> list[tuple[Group, list[Trial]]]:
    """Trials by whether their score is in the best quarter; the winner and the baseline are groups of their own."""
    scores = {trial.number: trial.last_score or 0.0 for trial in trials}
    bound = sorted(scores.values())[-max(1, len(scores) // 4)]
    return _grouped(trials, winner, lambda trial: _BEST_QUARTER if scores[trial.number] >= bound else _REST)


def _grouped(
    trials: Iterable[Trial], winner: int | None, group_of: Callable[[Trial], Group]
) -> list[tuple[Group, list[Trial]]]:
    groups: dict[Group, list[Trial]] = {}
    for trial in trials:
        group = _WINNER if trial.number == winner else _BASELINE if trial.baseline else group_of(trial)
        groups.setdefault(group, []).append(trial)
    return [(group, groups[group]) for group in _GROUPS if group in groups]


def _lines(group: Group, lines: Sequence[_Points]) -> go.Scatter:
    """A trace of several lines, with a gap after each."""
    points: list[tuple[float | None, float | None, str]] = [
        point for line in lines for point in (*line, (None, None, ""))
    ]
    return go.Scatter(
        x=[x for x, _, _ in points],
        y=[y for _, y, _ in points],
        text=[text for _, _, text in points],
        name=group.name,
        mode="lines",
        line={"color": group.colour.light, "width": group.width, "dash": group.dash},
        hovertemplate=f"%{{text}}<extra>{group.name}</extra>",
    )


def _points(group: Group, members: Sequence[Trial], x: Sequence[Number | str]) -> go.Scatter:
    size = {_WINNER: 13, _BASELINE: 9}.get(group, 7)
    return go.Scatter(
        x=list(x),
        y=[trial.last_value for trial in members],
        customdata=[[trial.number, trial.n_epochs, trial.metric.text(trial.last_score or 0.0)] for trial in members],
        name=group.name,
        mode="markers",
        marker={**_marker(group, size), "line": {"color": group.colour.light, "width": 1.5}},
        hovertemplate=f"trial %{{customdata[0]}}, %{{customdata[1]}} epochs: %{{customdata[2]}} at %{{x}}"
        f"<extra>{group.name}</extra>",
    )


def _marker(group: Group, size: float) -> dict[str, Any]:
    return {"color": group.colour.light, "size": size, "symbol": group.symbol}


def bars(values: Mapping[str, float], marker: dict[str, Any], hover: str, **more: Any) -> go.Bar:
    y, x = list(values), list(values.values())
    return go.Bar(y=y, x=x, orientation="h", marker=marker, hovertemplate=hover, **more)


def mark_at(figure: go.Figure, x: float, text: str, colour: Shade, line: dict[str, Any]) -> None:
    """Draw a vertical line with a text above it."""
    annotation = {"text": text, "font": {"color": colour.light, "size": 12}, "yanchor": "bottom"}
    figure.add_vline(x=x, line={"color": colour.light, **line}, annotation=annotation, annotation_position="top")


def _metric_of(trials: Sequence[Trial]) -> Metric:
    return trials[0].metric if trials else ACCURACY


def metric_axis(metric: Metric) -> dict[str, Any]:
    """Settings of an axis of the metric's values; logarithmic for losses: early ones are many times the last."""
    return {"type": "log"} if metric.is_loss else PERCENT


def _with_end(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.last_value is not None]


def _slice_axis(parameter: Searched) -> dict[str, Any]:
    if isinstance(parameter, LogUniform):
        return {"type": "log", "dtick": "D2" if parameter.high / parameter.low < 100 else 1}
    if isinstance(parameter, Choice):
        options = [short(value) for value in parameter.options]
        return {"type": "category", "categoryorder": "array", "categoryarray": options}
    return {}


def _axes(space: Space, trials: Sequence[Trial]) -> list[_Axis]:
    """Axes of the searched hyperparameters, the epochs and the metric."""
    axes = []
    for name, parameter in space.searched.items():
        ends = parameter.options if isinstance(parameter, Choice) else (parameter.low, parameter.high)
        scale = math.log if isinstance(parameter, LogUniform) else float
        axes.append(_Axis(short_name(name), min(ends), max(ends), attrgetter(f"config.{name}"), scale=scale))
    axes.append(_Axis("epochs", 0, max(trial.n_epochs for trial in trials), attrgetter("n_epochs")))
    values, metric = [trial.last_value or 0.0 for trial in trials], _metric_of(trials)
    text = short if metric.is_loss else "{:.1%}".format
    return [*axes, _Axis(metric.title, min(values), max(values), attrgetter("last_value"), text)]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number where several are equal."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
