"""The figures of a report about rungs, slots and replicates."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import plotly.graph_objects as go

from search.analysis.rung_statistics import RungSurvival
from search.experiment.history import Replicate, Trial
from search.experiment.manifest import session_times
from search.experiment.wall_clock import slot_times
from search.pages.page import BLUE, GREY, MUTED, ORANGE, PAPER, PURPLE, TEXT
from search.pages.plots import BY_STATUS, MOST_POINTS, PERCENT, Group, bars, group_of, mark_at, styled_figure
from search.pages.report_data import ReportData
from search.policy.replicate_statistics import replicate_results

_REPLICATE = replace(BY_STATUS["completed"], name="replicate", colour=ORANGE)


def rung_bars(rungs: Sequence[RungSurvival]) -> go.Figure:
    """Number of trials that passed each rung, were stopped at it or failed, as stacked bars."""
    traces = []
    for name, colour, pattern, attribute in (
        ("went on", BLUE, "", "passed"),
        ("stopped", GREY, "/", "stopped"),
        ("failed or diverged", PURPLE, "x", "failed"),
    ):
        counts = {f"epoch {rung.epoch}": getattr(rung, attribute) for rung in rungs}
        if any(counts.values()):
            shape = {"shape": pattern, "fgcolor": PAPER.light, "fillmode": "overlay"}
            marker = {"color": colour.light, "pattern": shape}
            texts = {"text": [str(count or "") for count in counts.values()], "insidetextanchor": "middle"}
            traces.append(bars(counts, marker, f"%{{y}}: %{{x}} {name}<extra></extra>", name=name, **texts))
    x = {"rangemode": "tozero", "tickformat": ",d"}
    figure = styled_figure("trials", "", 120 + 60 * len(rungs), traces, x, {"autorange": "reversed"})
    return figure.update_layout(barmode="stack", bargap=0.35)


class Turn(NamedTuple):
    """A trial or replicate in a slot (from 1), in seconds of the search without the pauses between sessions."""

    start_s: float
    end_s: float
    slot: int
    one: Trial | Replicate


def turns(known: ReportData, sessions: Sequence[tuple[float, float]]) -> list[Turn]:
    """Turns by their start. `sessions` as `session_times` gives them.

    The journal does not name slots: each turn gets the first one that is free.
    """

    def searched_s(at: float) -> float:
        return sum(min(max(0.0, at - start), seconds) for start, seconds in sessions)

    spans = []
    for one in known.history.work:
        spans += [(searched_s(start), searched_s(end), one) for start, end in slot_times(one, math.inf)]
    found, free_s = [], list[float]()
    for start_s, end_s, one in sorted(spans, key=lambda span: span[:2]):
        slot = next((i for i, free in enumerate(free_s) if free <= start_s), len(free_s))
        free_s[slot : slot + 1] = [max(start_s, end_s)]
        found.append(Turn(start_s, free_s[slot], slot + 1, one))
    return found


def timeline(known: ReportData) -> go.Figure | None:
    """Which trial or replicate each slot trained when, coloured by how it ended; None before the first trial."""
    times = session_times(known.manifest.sessions, known.history)
    shown = turns(known, times)[-MOST_POINTS:]
    if not shown:
        return None
    total_s, n_slots = sum(seconds for _, seconds in times), max(turn.slot for turn in shown)
    unit, unit_s = ("hours", 3600) if total_s > 7200 else ("minutes", 60) if total_s > 120 else ("seconds", 1)
    groups: dict[Group, list[Turn]] = {}
    for turn in shown:
        is_replicate = isinstance(turn.one, Replicate) and turn.one.status == "completed"
        groups.setdefault(_REPLICATE if is_replicate else group_of(turn.one, known.is_live), []).append(turn)
    traces = [
        go.Bar(
            orientation="h",
            y=[turn.slot for turn in members],
            base=[turn.start_s / unit_s for turn in members],
            x=[(turn.end_s - turn.start_s) / unit_s for turn in members],
            name=group.name,
            marker={"color": group.colour.light, "line": {"color": PAPER.light, "width": 1}},
            text=[turn.one.number if isinstance(turn.one, Trial) else turn.one.trial for turn in members],
            insidetextanchor="middle",
            textangle=0,
            textposition="inside",
            customdata=[turn.one.n_epochs for turn in members],
            hovertemplate=f"trial %{{text}}, %{{customdata}} epochs: %{{x:.1f}} {unit}<extra>{group.name}</extra>",
        )
        for group, members in groups.items()
    ]
    y = {"autorange": "reversed", "dtick": math.ceil(n_slots / 16), "tick0": 1, "showgrid": False}
    figure = styled_figure(f"{unit} of the search", "slot", 110 + 34 * min(n_slots, 16), traces, {}, y)
    for i in range(1, len(times)):
        start = sum(seconds for _, seconds in times[:i]) / unit_s
        mark_at(figure, start, "resumed", MUTED, {"width": 1, "dash": "dot"})
    return figure.update_layout(barmode="overlay", bargap=0.15, uniformtext={"minsize": 9, "mode": "hide"})


def replicate_plot(known: ReportData) -> go.Figure | None:
    """Each replicate by trial, the means with 95 % intervals, and the results in the search; None without any."""
    results, trials, metric = replicate_results(known.history), known.history.trials, known.history.metric
    names = {}
    for number, result in results.items():
        diverged = f", {result.n_diverged} diverged" if result.n_diverged else ""
        names[number] = f"trial {number}{' (baseline)' if trials[number].baseline else ''}{diverged}"
    runs = [run for run in known.history.replicates.values() if run.status == "completed"]
    means = [(number, metric.value(result.mean)) for number, result in results.items()]
    intervals = {"array": [result.half_width for result in results.values()], "thickness": 2.5, "width": 8}
    traces = [
        go.Scatter(
            x=[value for _, value in points],
            y=[names[number] for number, _ in points],
            name=name,
            mode="markers",
            marker={"color": colour.light, "symbol": symbol, "size": 11, "line": {"color": colour.light, "width": 2}},
            error_x={**intervals, "color": colour.light} if points is means else None,
            hovertemplate=f"%{{y}}: %{{x:{'.4f' if metric.is_loss else '.2%'}}}<extra>{name}</extra>",
        )
        for name, colour, symbol, points in (
            ("mean, 95 % interval", BLUE, "square", means),
            ("replicate", TEXT, "circle-open", [(run.trial, run.last_value) for run in runs if run.trial in names]),
            ("in the search", ORANGE, "diamond-open", [(number, trials[number].last_value) for number in names]),
        )
    ]
    # The best mean on top; without a range, the symbols at the edges would be cut.
    y = {"type": "category", "categoryarray": list(names.values()), "range": [len(names) - 0.5, -0.5]}
    height_px, x = 110 + 44 * len(names), {} if metric.is_loss else PERCENT
    return styled_figure(f"validation {metric.title}", "", height_px, traces, x, y) if names else None
