"""The figures of a report. Pure functions of the history; text from a folder is escaped in every figure.

The line of the best trial so far is Optuna's (`plot_optimization_history`). Optuna's slices and parallel coordinates
show completed trials only, and ASHA completes about one trial in five; ours show stopped trials in grey.
"""

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from optuna.study import Study
from optuna.visualization import plot_optimization_history

from search.analysis.columns import short, short_name
from search.analysis.importance import Importance
from search.analysis.rung_statistics import RungSurvival
from search.experiment.final_results import FinalResults
from search.experiment.history import Trial
from search.pages.palette import BLUE, GREY, LINE, MUTED, ORANGE, PAPER, PURPLE, TEXT, Shade
from spaces.parameters import Choice, LogUniform, Number, Searched
from spaces.printable import printable
from spaces.schema import Space

MOST_CURVES = 300  # more lines cannot be distinguished, and slow a page down
MOST_POINTS = 2000
MOST_ANNOTATED_CLASSES = 20
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class _Group:
    """Style of a kind of trial."""

    name: str
    colour: Shade
    width: float
    dash: str
    symbol: str


_STOPPED = _Group("stopped", GREY, 1.2, "solid", "circle-open")
_FAILED = _Group("failed or diverged", PURPLE, 1.5, "dot", "x")
_RUNNING = _Group("running", MUTED, 1.5, "dash", "diamond-open")
_UNFINISHED = replace(_RUNNING, name="unfinished")  # a running trial of a search that does not run
_COMPLETED = _Group("completed", BLUE, 1.5, "solid", "circle")
_BASELINE = _Group("baseline", ORANGE, 2.5, "dash", "square")
_WINNER = _Group("winner", TEXT, 3.5, "solid", "star")
_REST = _Group("other trials", GREY, 1.2, "solid", "circle-open")
_BEST_QUARTER = _Group("best quarter", BLUE, 2, "solid", "circle")
# In the order of drawing: later groups cover earlier ones.
_GROUPS = (_STOPPED, _FAILED, _RUNNING, _UNFINISHED, _COMPLETED, _REST, _BEST_QUARTER, _BASELINE, _WINNER)
_BY_STATUS = {"stopped": _STOPPED, "failed": _FAILED, "diverged": _FAILED, "running": _RUNNING, "completed": _COMPLETED}

_Points = list[tuple[float, float, str]]  # x, y and hover text of each point of a trial's line


@dataclass(frozen=True, slots=True)
class _Axis:
    """An axis of the parallel coordinates.

    Attributes:
        name: heading.
        low, high: values at the ends.
        value: of a trial.
        is_log: whether the scale is logarithmic.
        is_share: whether values are shown in per cent.
    """

    name: str
    low: float
    high: float
    value: Callable[[Trial], float]
    is_log: bool = False
    is_share: bool = False

    def position(self, trial: Trial) -> float:
        """0 at the low end, 1 at the high end; 0.5 where the ends are equal."""
        scale = math.log if self.is_log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(self.value(trial)) - low) / (high - low) if high > low else 0.5

    def text(self, value: float) -> str:
        return f"{value:.1%}" if self.is_share else short(value)


def plot_text(text: object) -> str:
    """Text that plotly shows as it is; plotly would interpret tags."""
    return html.escape(printable(text))


def drawn(trials: Sequence[Trial], winner: int | None, n_most: int) -> list[Trial]:
    """At most `n_most` of `trials`: the winner, the baseline, and evenly spaced others."""
    if len(trials) <= n_most:
        return list(trials)
    kept = [trial for trial in trials if trial.number == winner or trial.baseline]
    others = [trial for trial in trials if trial.number != winner and not trial.baseline]
    n_others = n_most - len(kept)
    return kept + [others[i * len(others) // n_others] for i in range(n_others)]


def empty_figure(x_title: str, y_title: str, height_px: int = 380) -> go.Figure:
    """Axes in the style of the pages, without data."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        height=height_px,
        margin={"l": 60, "r": 16, "t": 30, "b": 50},
        paper_bgcolor=PAPER.light,
        plot_bgcolor=PAPER.light,
        font={"color": TEXT.light, "family": FONT, "size": 13},
        hoverlabel={"font": {"family": FONT}},
        hovermode="closest",
        showlegend=False,  # the page has a legend of its own, for keyboards and narrow screens
    )
    axis = {"gridcolor": LINE.light, "linecolor": LINE.light, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x_title, "standoff": 8}, **axis)
    figure.update_yaxes(title={"text": y_title, "standoff": 8}, **axis)
    return figure


def learning_curves(
    trials: Sequence[Trial], winner: int | None, rung_epochs: Sequence[int], is_live: bool
) -> go.Figure:
    """Validation accuracy over epochs, a trace for each kind of trial.

    Args:
        trials: trials inside the space; the names of traces count all of them, drawn or not.
        winner: number of the winner.
        rung_epochs: ASHA's rungs; the last is the end of training.
        is_live: whether the search runs.
    """

    def points(trial: Trial) -> _Points:
        epochs = [(epoch.epoch, epoch.validation_accuracy) for epoch in trial.epochs if not epoch.diverged]
        return [(epoch, value, f"trial {trial.number}, epoch {epoch}: {value:.2%}") for epoch, value in epochs]

    figure = empty_figure("epoch", "validation accuracy")
    n_of_kind = {group: len(members) for group, members in _by_kind(trials, winner, is_live)}
    for group, members in _by_kind(drawn(trials, winner, MOST_CURVES), winner, is_live):
        trace = _lines(group, [points(trial) for trial in members])
        trace.update(mode="lines+markers", marker=_marker(group, 4 + group.width))
        if group not in (_BASELINE, _WINNER):
            trace.update(name=f"{group.name} ({n_of_kind[group]:,})")
        figure.add_trace(trace)
    for epoch in rung_epochs[:-1]:
        _mark(figure, epoch, f"rung {epoch}", MUTED, {"width": 1, "dash": "dot"})
    whole_numbers = {"dtick": 1, "tick0": 0} if rung_epochs[-1] <= 12 else {"tickformat": ",d"}
    figure.update_xaxes(rangemode="tozero", **whole_numbers)
    figure.update_yaxes(tickformat=".0%")
    return figure


def rung_bars(rungs: Sequence[RungSurvival]) -> go.Figure:
    """Number of trials that passed each rung, were stopped at it, failed or wait, as stacked bars."""
    figure = empty_figure("trials", "", height_px=120 + 60 * len(rungs))
    for name, colour, pattern, attribute in (
        ("went on", BLUE, "", "passed"),
        ("stopped", GREY, "/", "stopped"),
        ("failed or diverged", PURPLE, "x", "failed"),
        ("waiting", ORANGE, ".", "waiting"),
    ):
        counts = {f"epoch {rung.epoch}": getattr(rung, attribute) for rung in rungs}
        if any(counts.values()):
            shape = {"shape": pattern, "fgcolor": PAPER.light, "fillmode": "overlay"}
            marker = {"color": colour.light, "pattern": shape}
            figure.add_trace(_bars(counts, marker, f"%{{y}}: %{{x}} {name}<extra></extra>", name=name))
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(rangemode="tozero", tickformat=",d")
    return figure


def optimisation_history(trials: Sequence[Trial], winner: int | None, study: Study, is_live: bool) -> go.Figure:
    """Last accuracy of each trial by its number, and Optuna's line of the best completed trial so far.

    Args:
        trials: trials inside the space.
        winner: number of the winner.
        study: as `study_of` gives it.
        is_live: whether the search runs.
    """
    figure = empty_figure("trial", "validation accuracy where it ended")
    for trace in plot_optimization_history(study).data:
        if trace.mode == "lines" and len(trace.x):
            # Without `skip`, hovering shows the line instead of the trials on it.
            line = {"color": BLUE.light, "width": 2, "shape": "hv"}
            figure.add_trace(trace.update(name="best completed so far", line=line, hoverinfo="skip"))
    for group, members in _by_kind(_with_end(drawn(trials, winner, MOST_POINTS)), winner, is_live):
        figure.add_trace(_points(group, members, [trial.number for trial in members]))
    figure.update_yaxes(tickformat=".0%")
    return figure


def parallel_coordinates(space: Space, trials: Sequence[Trial], winner: int | None) -> go.Figure | None:
    """A line for each trial through its hyperparameters to its accuracy; None without a trial that has an accuracy.

    Plotly's own parallel coordinates need WebGL and have no hover text; these are lines.
    """
    shown = _with_end(drawn(trials, winner, MOST_CURVES))
    if not shown:
        return None
    axes = [*(_parameter_axis(name, parameter) for name, parameter in space.searched.items()), *_result_axes(shown)]

    def points(trial: Trial) -> _Points:
        texts = [f"trial {trial.number}: {axis.name} {axis.text(axis.value(trial))}" for axis in axes]
        return [(i, axis.position(trial), text) for i, (axis, text) in enumerate(zip(axes, texts, strict=True))]

    figure = empty_figure("", "", height_px=420)
    for group, members in _by_quarter(shown, winner):
        figure.add_trace(_lines(group, [points(trial) for trial in members]))
    font = {"color": MUTED.light, "size": 12}
    for i, axis in enumerate(axes):
        figure.add_vline(x=i, line={"color": MUTED.light, "width": 1}, layer="below")
        for place, shift, value in ((0, -12, axis.low), (1, 12, axis.high)):
            figure.add_annotation(x=i, y=place, text=axis.text(value), showarrow=False, yshift=shift, font=font)
    names = [axis.name for axis in axes]
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=names, showgrid=False, range=[-0.3, len(axes) - 0.7])
    figure.update_yaxes(visible=False, range=[-0.1, 1.1], fixedrange=True)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 40})
    return figure


def importance_bars(importance: Importance) -> go.Figure:
    """Share of the variance that each hyperparameter explains, and the largest share that chance explains."""
    shares = importance.shares
    figure = empty_figure("share of the variance between trials that it explains alone", "", 110 + 34 * len(shares))
    colours = [BLUE.light if name in importance.found else GREY.light for name in shares]
    figure.add_trace(_bars(shares, {"color": colours}, "%{y}: %{x:.1%}<extra></extra>"))
    _mark(figure, importance.by_chance, "chance", ORANGE, {"width": 2, "dash": "dash"})
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(rangemode="tozero", tickformat=".0%")
    return figure


def slices(space: Space, trials: Sequence[Trial], winner: int | None, is_live: bool) -> dict[str, go.Figure]:
    """Last accuracy of each trial against each searched hyperparameter, by the hyperparameter's name."""
    shown = _with_end(drawn(trials, winner, MOST_POINTS))
    figures = {}
    for name, parameter in space.searched.items():
        figure = empty_figure(name, "", height_px=240)
        for group, members in _by_kind(shown, winner, is_live):
            values: list[Number] = [getattr(trial.config, name) for trial in members]
            x = [short(value) for value in values] if isinstance(parameter, Choice) else values
            figure.add_trace(_points(group, members, x))
        figure.update_xaxes(**_slice_axis(parameter))
        figure.update_yaxes(tickformat=".0%")
        figure.update_layout(margin={"l": 45, "r": 10, "t": 10, "b": 45})
        figures[name] = figure
    return figures


def confusion(results: FinalResults) -> go.Figure:
    """The confusion matrix; colours are shares of the true class."""
    n_classes = len(results.class_names)
    names = _distinct([plot_text(name[:40]) for name in results.class_names])
    figure = empty_figure("predicted class", "true class", height_px=min(900, 200 + 30 * n_classes))
    figure.add_trace(
        go.Heatmap(
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
            text=[[str(count or "") for count in row] for row in results.confusion_matrix],
            texttemplate="%{text}" if n_classes <= MOST_ANNOTATED_CLASSES else None,
            hovertemplate="true %{y}, predicted %{x}: %{customdata} (%{z:.1%})<extra></extra>",
        )
    )
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, autorange="reversed")
    return figure


def _by_kind(trials: Iterable[Trial], winner: int | None, is_live: bool) -> list[tuple[_Group, list[Trial]]]:
    """Trials by status; the winner and the baseline are groups of their own."""
    by_status = _BY_STATUS if is_live else {**_BY_STATUS, "running": _UNFINISHED}
    return _grouped(trials, winner, lambda trial: by_status[trial.status])


def _by_quarter(trials: Sequence[Trial], winner: int | None) -> list[tuple[_Group, list[Trial]]]:
    """Trials by whether their accuracy is in the best quarter; the winner and the baseline are groups of their own."""
    ends = sorted(end for trial in trials if (end := _end(trial)) is not None)
    bound = ends[-max(1, len(ends) // 4)]
    return _grouped(trials, winner, lambda trial: _BEST_QUARTER if (_end(trial) or 0.0) >= bound else _REST)


def _grouped(
    trials: Iterable[Trial], winner: int | None, group_of: Callable[[Trial], _Group]
) -> list[tuple[_Group, list[Trial]]]:
    groups: dict[_Group, list[Trial]] = {}
    for trial in trials:
        group = _WINNER if trial.number == winner else _BASELINE if trial.baseline else group_of(trial)
        groups.setdefault(group, []).append(trial)
    return [(group, groups[group]) for group in _GROUPS if group in groups]


def _lines(group: _Group, lines: Sequence[_Points]) -> go.Scatter:
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


def _points(group: _Group, members: Sequence[Trial], x: Sequence[Number | str]) -> go.Scatter:
    size = {_WINNER: 13, _BASELINE: 9}.get(group, 7)
    return go.Scatter(
        x=list(x),
        y=[_end(trial) for trial in members],
        customdata=[[trial.number, trial.n_epochs] for trial in members],
        name=group.name,
        mode="markers",
        marker={**_marker(group, size), "line": {"color": group.colour.light, "width": 1.5}},
        hovertemplate=f"trial %{{customdata[0]}}, %{{customdata[1]}} epochs: %{{y:.2%}} at %{{x}}"
        f"<extra>{group.name}</extra>",
    )


def _marker(group: _Group, size: float) -> dict[str, Any]:
    return {"color": group.colour.light, "size": size, "symbol": group.symbol}


def _bars(values: Mapping[str, float], marker: dict[str, Any], hover: str, **more: Any) -> go.Bar:
    y, x = list(values), list(values.values())
    return go.Bar(y=y, x=x, orientation="h", marker=marker, hovertemplate=hover, **more)


def _mark(figure: go.Figure, x: float, text: str, colour: Shade, line: dict[str, Any]) -> None:
    """Draw a vertical line with a text above it."""
    annotation = {"text": text, "font": {"color": colour.light, "size": 12}, "yanchor": "bottom"}
    figure.add_vline(x=x, line={"color": colour.light, **line}, annotation=annotation, annotation_position="top")


def _end(trial: Trial) -> float | None:
    """Last accuracy of a trial; None where it has none or diverged."""
    return None if trial.last is None or trial.last.diverged else trial.last.validation_accuracy


def _with_end(trials: Iterable[Trial]) -> list[Trial]:
    return [trial for trial in trials if _end(trial) is not None]


def _slice_axis(parameter: Searched) -> dict[str, Any]:
    if isinstance(parameter, LogUniform):
        return {"type": "log", "dtick": "D2" if parameter.high / parameter.low < 100 else 1}
    if isinstance(parameter, Choice):
        options = [short(value) for value in parameter.options]
        return {"type": "category", "categoryorder": "array", "categoryarray": options}
    return {}


def _parameter_axis(name: str, parameter: Searched) -> _Axis:
    ends = parameter.options if isinstance(parameter, Choice) else (parameter.low, parameter.high)
    is_log = isinstance(parameter, LogUniform)
    return _Axis(short_name(name), min(ends), max(ends), lambda trial: float(getattr(trial.config, name)), is_log)


def _result_axes(trials: Sequence[Trial]) -> list[_Axis]:
    ends = [end for trial in trials if (end := _end(trial)) is not None]
    most = max(trial.n_epochs for trial in trials)
    return [
        _Axis("epochs", 0, most, lambda trial: trial.n_epochs),
        _Axis("accuracy", min(ends), max(ends), lambda trial: _end(trial) or 0.0, is_share=True),
    ]


def _distinct(names: Sequence[str]) -> list[str]:
    """Names with a number where several are equal; plotly merges equal categories."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]
