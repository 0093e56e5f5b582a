"""The leaderboard as a table, JSON or Markdown."""

import json
from collections.abc import Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.analysis.columns import LeaderboardColumn, parameter_column, shown_columns
from search.analysis.ranking import Ranked, n_by_replicates
from search.experiment.manifest import TestSetUse
from spaces.printable import printable
from trainable.metric import ACCURACY, Metric

STATUS_STYLES = {"completed": "green", "stopped": "dim", "running": "cyan", "failed": "red", "diverged": "red"}
# A longer table scrolls its heading away, and takes seconds to lay out; CSV, JSON and Markdown have all rows.
MOST_ROWS = 100
MOST_REASONS = 20
GAP = 3  # characters between columns
N_ALWAYS_SHOWN = 3  # result columns, however narrow the terminal: rank, trial and the metric
WIDE = 400  # characters of a table that is not for a terminal
# `SIMPLE_HEAD` with a line instead of a gap at the end of a section.
_BOX = box.Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")


def as_json(experiment: str, ranked: Sequence[Ranked], metric: Metric, openings: Sequence[TestSetUse] = ()) -> str:
    """An object with `experiment`, `metric`, `trials` and `test_openings`."""
    content = {
        "experiment": experiment,
        "metric": metric.column,
        "trials": [row.as_dict() for row in ranked],
        "test_openings": [opening.model_dump() for opening in openings],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def as_markdown(ranked: Sequence[Ranked], parameters: Sequence[str]) -> str:
    """A table for a README or an issue."""
    columns = fitting_columns(ranked, parameters)
    headings = [column.name if column.name in parameters else column.heading for column in columns]
    rows = [[column.text_of(row) for column in columns] for row in ranked]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, ["---:"] * len(headings), *rows])


def as_table(
    ranked: Sequence[Ranked],
    parameters: Sequence[str],
    width: int | None = None,
    live: bool = True,
    most_rows: int | None = None,
) -> str:
    """Aligned columns, with a line between the ranks by replicates and the ranks by the search.

    Args:
        parameters: hyperparameters that get a column.
        width: of the terminal, in characters: the table is styled, and has the columns that fit. None gives a plain
            table with all columns.
        live: whether the search runs now; if not, running trials are shown as unfinished.
        most_rows: number of rows to show; None shows all.
    """
    n_confirmed, rows = n_by_replicates(ranked), ranked[:most_rows]
    columns = fitting_columns(rows, parameters, width, live)
    table = Table(box=_BOX, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column.heading, justify="right" if column.is_number else "left", no_wrap=True)
    for i, row in enumerate(rows, 1):
        style = "" if row.status == "completed" else STATUS_STYLES[row.status]
        cells = (Text(column.text_of(row, live)) for column in columns)
        table.add_row(*cells, style=style, end_section=i == n_confirmed < len(rows))
    lines = printed_lines(table, width)
    if 0 < n_confirmed < len(rows):
        baseline = ", the baseline by its replicates" if any(row.replicates for row in rows[n_confirmed:]) else ""
        lines.append(f"(above the line: ranked by replicates; below it: by forecasts from the search{baseline})")
    if len(rows) < len(ranked):
        lines.append(f"(the first {len(rows):,} of {len(ranked):,} trials: --top N shows more, --format csv all)")
    left_out = [name for name in parameters if name not in {column.name for column in columns}]
    if left_out:
        lines.append(f"(wider terminals also show {', '.join(left_out)})")
    return "\n".join([*lines, *_reasons(ranked)])


def fitting_columns(
    ranked: Sequence[Ranked], parameters: Sequence[str], width: int | None = None, live: bool = True
) -> list[LeaderboardColumn]:
    """The result columns that fit into `width` characters, then as many of the others as fit; None shows all."""
    metric = ranked[0].metric if ranked else ACCURACY
    results = shown_columns(any(row.replicates for row in ranked), metric)
    shown = [column for column in results if not column.after_parameters]
    last = [column for column in results if column.after_parameters and not column.is_long]
    more = [*(parameter_column(name) for name in parameters), *last]
    if width is None:
        return [*shown, *more]
    widths = {
        column.name: max(map(len, [column.heading, *(column.text_of(row, live) for row in ranked)]))
        for column in (*shown, *more)
    }

    def fits(columns: Sequence[LeaderboardColumn]) -> bool:
        return sum(widths[column.name] + GAP for column in columns) - GAP <= width

    for column in sorted((column for column in shown if column.drop_order), key=lambda column: column.drop_order):
        if len(shown) > N_ALWAYS_SHOWN and not fits(shown):
            shown.remove(column)
    for column in more:
        if not fits([*shown, column]):
            break
        shown.append(column)
    return shown


def printed_lines(table: Table, width: int | None) -> list[str]:
    """Lines of a table; with colours where it is for a terminal of `width` characters."""
    buffer = StringIO()
    Console(file=buffer, width=width or WIDE, force_terminal=width is not None).print(table)
    return [line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines()]


def _reasons(ranked: Sequence[Ranked]) -> list[str]:
    """Reasons of trials that failed or are excluded."""
    bad = [row for row in ranked if row.status == "failed" or row.excluded]
    lines = [f"trial {row.trial}: {printable(row.reason)}" for row in bad[:MOST_REASONS]]
    if len(bad) > MOST_REASONS:
        lines.append(f"(and {len(bad) - MOST_REASONS:,} more that failed or do not count: --format csv says why)")
    return lines
