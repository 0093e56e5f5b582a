"""The figures of a report, by plotly. Pure functions of the history; no figure holds text from a folder unescaped.

Optuna's own slices and parallel coordinates know completed trials alone, and ASHA completes about one in five; they are
drawn here with stopped trials in grey.
"""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from optuna.study import Study
from optuna.visualization import plot_optimization_history

from search.analysis.columns import short, short_name
from search.analysis.importance import Importance
from search.analysis.rung_survival import RungSurvival
from search.experiment.final_results import FinalResults
from search.experiment.history import Trial
from search.pages.palette import BLUE, GREY, LINE, MUTED, ORANGE, PAPER, PURPLE, TEXT, Shade
from spaces.parameters import Choice, LogUniform, Number, Searched
from spaces.printable import printable
from spaces.schema import Space

# More lines cannot be told apart, and slow a page down.
MOST_CURVES = 300
MOST_POINTS = 2000
MOST_ANNOTATED_CLASSES = 20
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, slots=True)
class _Group:
    """Trials that are drawn alike."""

    name: str
    colour: Shade
    width: float
    dash: str
    symbol: str


_STOPPED = _Group("stopped", GREY, 1.2, "solid", "circle-open")
_FAILED = _Group("failed or diverged", PURPLE, 1.5, "dot", "x")
_RUNNING = _Group("running", MUTED, 1.5, "dash", "diamond-open")
# A trial without an end, once the search has ended or was killed.
_UNFINISHED = replace(_RUNNING, name="unfinished")
_COMPLETED = _Group("completed", BLUE, 1.5, "solid", "circle")
_BASELINE = _Group("baseline", ORANGE, 2.5, "dash", "square")
_WINNER = _Group("winner", TEXT, 3.5, "solid", "star")
# In the order in which they are drawn: later ones lie on top.
_GROUPS = (_STOPPED, _FAILED, _RUNNING, _UNFINISHED, _COMPLETED, _BASELINE, _WINNER)
_REST = _Group("other trials", GREY, 1.2, "solid", "circle-open")
_BEST_QUARTER = _Group("best quarter", BLUE, 2, "solid", "circle")
_BY_STATUS = {"stopped": _STOPPED, "failed": _FAILED, "diverged": _FAILED, "running": _RUNNING, "completed": _COMPLETED}


@dataclass(frozen=True, slots=True)
class _Axis:
    """One of the parallel axes.

    Attributes:
        name: as it is shown.
        low, high: its ends.
        value: of a trial.
        is_log: whether equal factors are equal lengths.
        is_share: whether values are shown in per cent.
    """

    name: str
    low: float
    high: float
    value: Callable[[Trial], float]
    is_log: bool = False
    is_share: bool = False

    def position(self, trial: Trial) -> float:
        """0 at the low end, 1 at the high one; in the middle where they are one."""
        scale = math.log if self.is_log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(self.value(trial)) - low) / (high - low) if high > low else 0.5

    def text(self, value: float) -> str:
        return f"{value:.1%}" if self.is_share else short(value)


def plot_text(text: object) -> str:
    """Text from elsewhere as plotly shows it as itself: it would take tags for its own."""
    return html.escape(printable(text))


def drawn(trials: Sequence[Trial], winner: int | None, n_most: int) -> list[Trial]:
    """Those of `trials` that a figure shows: all, or the winner, the baseline and an even choice of the others."""
    if len(trials) <= n_most:
        return list(trials)
    kept = [trial for trial in trials if trial.number == winner or trial.baseline]
    others = [trial for trial in trials if trial.number != winner and not trial.baseline]
    n_others = n_most - len(kept)
    return kept + [others[i * len(others) // n_others] for i in range(n_others)]


def empty_figure(x_title: str, y_title: str, height: int = 380) -> go.Figure:
    """Axes in the pages' style with nothing between them yet; `height` is in pixels."""
    figure = go.Figure()
    figure.update_layout(**_layout(height), margin={"l": 60, "r": 16, "t": 30, "b": 50})
    axis = {"gridcolor": LINE.light, "linecolor": LINE.light, "zeroline": False, "automargin": True}
    figure.update_xaxes(title={"text": x_title, "standoff": 8}, **axis)
    figure.update_yaxes(title={"text": y_title, "standoff": 8}, **axis)
    return figure


def learning_curves(
    trials: Sequence[Trial], winner: int | None, rung_epochs: Sequence[int], is_live: bool
) -> go.Figure:
    """Validation accuracy over epochs: one trace a kind of trial, with gaps between its trials.

    Args:
        trials: that count; names say how many there are of a kind, drawn or not.
        winner: its number.
        rung_epochs: ASHA's rungs; the last is the end of training.
        is_live: whether the search runs.
    """
    figure = empty_figure("epoch", "validation accuracy")
    n_of_kind = {group: len(members) for group, members in _grouped(trials, winner, is_live)}
    for group, members in _grouped(drawn(trials, winner, MOST_CURVES), winner, is_live):
        x: list[int | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in members:
            epochs = [epoch for epoch in trial.epochs if not epoch.diverged]
            x += [*(epoch.epoch for epoch in epochs), None]
            y += [*(epoch.validation_accuracy for epoch in epochs), None]
            text += [*(f"trial {trial.number}, epoch {e.epoch}: {e.validation_accuracy:.2%}" for e in epochs), ""]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                name=f"{group.name} ({n_of_kind[group]:,})" if group not in (_BASELINE, _WINNER) else group.name,
                mode="lines+markers",
                line={"color": group.colour.light, "width": group.width, "dash": group.dash},
                marker={"color": group.colour.light, "size": 4 + group.width, "symbol": group.symbol},
                hovertemplate=f"%{{text}}<extra>{group.name}</extra>",
            )
        )
    for epoch in rung_epochs[:-1]:
        figure.add_vline(
            x=epoch,
            line={"color": MUTED.light, "width": 1, "dash": "dot"},
            annotation={"text": f"rung {epoch}", "font": {"color": MUTED.light, "size": 12}, "yanchor": "bottom"},
            annotation_position="top",
        )
    figure.update_xaxes(rangemode="tozero", **_whole_numbers(rung_epochs[-1]))
    figure.update_yaxes(tickformat=".0%")
    return figure


def rung_bars(rungs: Sequence[RungSurvival]) -> go.Figure:
    """What became of the trials that entered each rung, as stacked bars."""
    figure = empty_figure("trials", "", height=120 + 60 * len(rungs))
    names = [f"epoch {rung.epoch}" for rung in rungs]
    parts: tuple[tuple[str, Shade, str, Callable[[RungSurvival], int]], ...] = (
        ("went on", BLUE, "", lambda rung: rung.passed),
        ("stopped", GREY, "/", lambda rung: rung.stopped),
        ("failed or diverged", PURPLE, "x", lambda rung: rung.failed),
        ("waiting", ORANGE, ".", lambda rung: rung.waiting),
    )
    for name, colour, pattern, count in parts:
        counts = [count(rung) for rung in rungs]
        if any(counts):
            figure.add_trace(
                go.Bar(
                    y=names,
                    x=counts,
                    name=name,
                    orientation="h",
                    marker={
                        "color": colour.light,
                        "pattern": {"shape": pattern, "fgcolor": PAPER.light, "fillmode": "overlay"},
                    },
                    hovertemplate=f"%{{y}}: %{{x}} {name}<extra></extra>",
                )
            )
    figure.update_layout(barmode="stack", bargap=0.35)
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(rangemode="tozero", tickformat=",d")
    return figure


def optimisation_history(trials: Sequence[Trial], winner: int | None, study: Study, is_live: bool) -> go.Figure:
    """Where each trial ended, in the order of proposals, and the best completed one so far; Optuna's, with more in it.

    Args:
        trials: that count.
        winner: its number.
        study: as `study_of` gives it.
        is_live: whether the search runs.
    """
    figure = empty_figure("trial", "validation accuracy where it ended")
    for trace in plot_optimization_history(study).data:
        if trace.mode == "lines" and len(trace.x):
            trace.update(
                name="best completed so far",
                line={"color": BLUE.light, "width": 2, "shape": "hv"},
                # Plotly would tell of it, and not of the trials on it.
                hoverinfo="skip",
            )
            figure.add_trace(trace)
    # After the line, to lie on it.
    shown = drawn(trials, winner, MOST_POINTS)
    for group, members in _grouped([trial for trial in shown if _end(trial) is not None], winner, is_live):
        figure.add_trace(_points(group, members, [trial.number for trial in members]))
    figure.update_yaxes(tickformat=".0%")
    return figure


def parallel_coordinates(space: Space, trials: Sequence[Trial], winner: int | None) -> go.Figure | None:
    """A line a trial through its hyperparameters to its accuracy; None without trials that have one.

    Drawn as lines, not as plotly's own kind of plot for it, which needs WebGL and says nothing when it is hovered over.
    """
    shown = [trial for trial in drawn(trials, winner, MOST_CURVES) if _end(trial) is not None]
    if not shown:
        return None
    axes = [*(_parameter_axis(name, parameter) for name, parameter in space.searched.items()), *_result_axes(shown)]
    figure = empty_figure("", "", height=420)
    for group, members in _by_quarter(shown, winner):
        x: list[int | None] = []
        y: list[float | None] = []
        text: list[str] = []
        for trial in members:
            x += [*range(len(axes)), None]
            y += [*(axis.position(trial) for axis in axes), None]
            text += [*(f"trial {trial.number}: {axis.name} {axis.text(axis.value(trial))}" for axis in axes), ""]
        figure.add_trace(
            go.Scatter(
                x=x,
                y=y,
                text=text,
                name=group.name,
                mode="lines",
                line={"color": group.colour.light, "width": group.width, "dash": group.dash},
                hovertemplate=f"%{{text}}<extra>{group.name}</extra>",
            )
        )
    for i, axis in enumerate(axes):
        figure.add_vline(x=i, line={"color": MUTED.light, "width": 1}, layer="below")
        for place, shift, value in ((0, -12, axis.low), (1, 12, axis.high)):
            font = {"color": MUTED.light, "size": 12}
            figure.add_annotation(x=i, y=place, text=axis.text(value), showarrow=False, yshift=shift, font=font)
    names = [axis.name for axis in axes]
    figure.update_xaxes(tickvals=list(range(len(axes))), ticktext=names, showgrid=False, range=[-0.3, len(axes) - 0.7])
    figure.update_yaxes(visible=False, range=[-0.1, 1.1], fixedrange=True)
    figure.update_layout(margin={"l": 10, "r": 10, "t": 10, "b": 40})
    return figure


def importance_bars(importance: Importance) -> go.Figure:
    """The share of each hyperparameter in the variance, and how much chance gives."""
    names, shares = list(importance.shares), list(importance.shares.values())
    figure = empty_figure("share of the variance between trials that it explains alone", "", 110 + 34 * len(names))
    colours = [BLUE.light if name in importance.found else GREY.light for name in names]
    figure.add_trace(
        go.Bar(
            y=names,
            x=shares,
            orientation="h",
            marker={"color": colours},
            hovertemplate="%{y}: %{x:.1%}<extra></extra>",
            showlegend=False,
        )
    )
    figure.add_vline(
        x=importance.by_chance,
        line={"color": ORANGE.light, "width": 2, "dash": "dash"},
        annotation={"text": "chance", "font": {"color": ORANGE.light, "size": 12}, "yanchor": "bottom"},
        annotation_position="top",
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(rangemode="tozero", tickformat=".0%")
    return figure


def slices(space: Space, trials: Sequence[Trial], winner: int | None, is_live: bool) -> dict[str, go.Figure]:
    """For each searched hyperparameter, its value against where each trial ended."""
    shown = [trial for trial in drawn(trials, winner, MOST_POINTS) if _end(trial) is not None]
    figures = {}
    for name, parameter in space.searched.items():
        figure = empty_figure(name, "", height=240)
        for group, members in _grouped(shown, winner, is_live):
            values = [_axis_value(parameter, getattr(trial.config, name)) for trial in members]
            figure.add_trace(_points(group, members, values))
        axis: dict[str, Any] = {}
        if isinstance(parameter, LogUniform):
            axis = {"type": "log", "dtick": "D2" if parameter.high / parameter.low < 100 else 1}
        elif isinstance(parameter, Choice):
            axis = {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [short(value) for value in parameter.options],
            }
        figure.update_xaxes(**axis)
        figure.update_yaxes(tickformat=".0%")
        figure.update_layout(showlegend=False, margin={"l": 45, "r": 10, "t": 10, "b": 45})
        figures[name] = figure
    return figures


def confusion(results: FinalResults) -> go.Figure:
    """Who is taken for whom; colours are shares of the true class."""
    n_classes = len(results.class_names)
    names = _distinct([plot_text(name[:40]) for name in results.class_names])
    shares = [[count / max(1, sum(row)) for count in row] for row in results.confusion_matrix]
    figure = empty_figure("predicted class", "true class", height=min(900, 200 + 30 * n_classes))
    figure.add_trace(
        go.Heatmap(
            z=shares,
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
    figure.update_xaxes(type="category", showgrid=False, automargin=True)
    figure.update_yaxes(type="category", showgrid=False, automargin=True, autorange="reversed")
    return figure


def _grouped(trials: Sequence[Trial], winner: int | None, is_live: bool) -> list[tuple[_Group, list[Trial]]]:
    by_status = _BY_STATUS if is_live else {**_BY_STATUS, "running": _UNFINISHED}
    groups: dict[_Group, list[Trial]] = {}
    for trial in trials:
        group = _WINNER if trial.number == winner else _BASELINE if trial.baseline else by_status[trial.status]
        groups.setdefault(group, []).append(trial)
    return [(group, groups[group]) for group in _GROUPS if group in groups]


def _points(group: _Group, members: Sequence[Trial], x: Sequence[Number | str]) -> go.Scatter:
    return go.Scatter(
        x=list(x),
        y=[_end(trial) for trial in members],
        customdata=[[trial.number, trial.n_epochs] for trial in members],
        name=group.name,
        mode="markers",
        marker={
            "color": group.colour.light,
            "symbol": group.symbol,
            "size": 13 if group is _WINNER else 9 if group is _BASELINE else 7,
            "line": {"color": group.colour.light, "width": 1.5},
        },
        hovertemplate="trial %{customdata[0]}, %{customdata[1]} epochs: %{y:.2%} at %{x}<extra>"
        + group.name
        + "</extra>",
    )


def _end(trial: Trial) -> float | None:
    """Its last accuracy; None where it has none or diverged."""
    last = trial.last
    return None if last is None or last.diverged else last.validation_accuracy


def _axis_value(parameter: Searched, value: Number) -> Number | str:
    return short(value) if isinstance(parameter, Choice) else value


def _parameter_axis(name: str, parameter: Searched) -> _Axis:
    def value(trial: Trial) -> float:
        return float(getattr(trial.config, name))

    if isinstance(parameter, Choice):
        return _Axis(short_name(name), min(parameter.options), max(parameter.options), value)
    is_log = isinstance(parameter, LogUniform)
    return _Axis(short_name(name), parameter.low, parameter.high, value, is_log=is_log)


def _result_axes(trials: Sequence[Trial]) -> list[_Axis]:
    ends = [end for trial in trials if (end := _end(trial)) is not None]
    most = max(trial.n_epochs for trial in trials)
    return [
        _Axis("epochs", 0, most, lambda trial: trial.n_epochs),
        _Axis("accuracy", min(ends), max(ends), lambda trial: _end(trial) or 0.0, is_share=True),
    ]


def _by_quarter(trials: Sequence[Trial], winner: int | None) -> list[tuple[_Group, list[Trial]]]:
    """The winner, the baseline, and of the others those whose accuracy is among the best quarter of all."""
    ends = sorted(end for trial in trials if (end := _end(trial)) is not None)
    bound = ends[-max(1, len(ends) // 4)]
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        group = _WINNER if trial.number == winner else _BASELINE if trial.baseline else None
        group = group or (_BEST_QUARTER if (_end(trial) or 0.0) >= bound else _REST)
        groups.setdefault(group.name, []).append(trial)
    order = (_REST, _BEST_QUARTER, _BASELINE, _WINNER)
    return [(group, groups[group.name]) for group in order if group.name in groups]


def _distinct(names: Sequence[str]) -> list[str]:
    """Equal categories would fall into one row."""
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _whole_numbers(largest: int) -> dict[str, Any]:
    return {"dtick": 1, "tick0": 0} if largest <= 12 else {"tickformat": ",d"}


def _layout(height: int) -> dict[str, Any]:
    return {
        "template": "none",
        "height": height,
        "paper_bgcolor": PAPER.light,
        "plot_bgcolor": PAPER.light,
        "font": {"color": TEXT.light, "family": FONT, "size": 13},
        "hoverlabel": {"font": {"family": FONT}},
        "hovermode": "closest",
        # Pages draw a legend of their own, which the keyboard reaches and a narrow screen has room for.
        "showlegend": False,
    }
