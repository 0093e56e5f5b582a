"""A comparison of experiments as an HTML page in the report's style."""

from collections.abc import Sequence
from itertools import groupby

import plotly.graph_objects as go

from search.comparison import Compared, ComparedRow, lead_of, remarks
from search.manifest import timestamp
from search.page import render
from search.palette import BLUE, GREY, ORANGE, PURPLE, TEXT
from search.report_plots import empty_figure, plot_text
from spaces.printable import printable

_COLOURS = (BLUE, ORANGE, PURPLE, TEXT, GREY)
_DASHES = ("solid", "dash", "dot")


def comparison_html(compared: Sequence[Compared], rows: Sequence[ComparedRow]) -> str:
    """The page: sentences, the best so far against epochs and against time, and all rows."""
    figures = {
        "epochs": best_so_far_figure(compared, "epochs that all trials had trained", by_time=False),
        "seconds": best_so_far_figure(compared, "seconds that the search had run", by_time=True),
    }
    sentences = [(one.name, lead_of(one)) for one in compared]
    return render(
        "compare.html",
        f"Comparison of {len(compared)} searches",
        figures,
        names=[one.name for one in compared],
        sentences=sentences,
        remarks=remarks(compared),
        sections=[{"name": name, "rows": list(some)} for name, some in groupby(rows, key=lambda row: row.section)],
        any_curve=any(one.curve for one in compared),
        footer=f"Made {timestamp()} by python -m search.compare. This page fetches nothing, and sends nothing.",
    )


def best_so_far_figure(compared: Sequence[Compared], x_title: str, by_time: bool) -> go.Figure:
    """The best completed trial so far: a line an experiment, against epochs or seconds."""
    figure = empty_figure(x_title, "best validation accuracy so far")
    for i, one in enumerate(compared):
        colour, dash = _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]
        unit = "s" if by_time else "epochs"
        figure.add_trace(
            go.Scatter(
                x=[point.seconds if by_time else point.epochs for point in one.curve],
                y=[point.accuracy for point in one.curve],
                name=plot_text(one.name),
                # For the legend, which shows it as it is.
                meta=printable(one.name),
                mode="lines+markers",
                line={"color": colour.light, "width": 2.5, "dash": dash, "shape": "hv"},
                marker={"color": colour.light, "size": 6},
                hovertemplate=f"%{{y:.2%}} after %{{x:,}} {unit}<extra>{plot_text(one.name)}</extra>",
            )
        )
    figure.update_xaxes(rangemode="tozero", tickformat=",d")
    figure.update_yaxes(tickformat=".0%")
    return figure
