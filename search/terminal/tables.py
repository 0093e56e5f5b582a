"""The leaderboard as a table, CSV, JSON or Markdown."""

import json
from collections.abc import Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.analysis.csv_files import trials_csv
from search.analysis.ranking import METRIC, SORT_KEYS, Ranked, n_by_replicates, replicate_text
from search.experiment.manifest import TestSetUse
from spaces.parameters import HYPERPARAMETER_NAMES, Number
from spaces.printable import printable

# For screens; CSV, JSON and Markdown keep the full names.
SHORT_NAMES = {"shift_scale_rotate_p": "ssr_p", "coarse_dropout_p": "hole_p"}

_HEADER = ("rank", "trial", "status", "epochs", "accuracy", "loss", "seconds")
_REPLICATE_HEADER = ("replicates", "tied")
# Columns that go where a terminal is too narrow for all.
_MISSED_FIRST = ("seconds", "loss", "epochs", "tied", "status", "accuracy")
# Between columns.
GAP = 3
# The head of a longer table scrolls away, and laying it out takes seconds; CSV, JSON and Markdown have all rows.
MOST_ROWS = 100
MOST_REASONS = 20
# `SIMPLE_HEAD` with a line, not a gap, at the end of a section.
_BOX = box.Box("    \n    \n ── \n    \n ── \n    \n    \n    \n")


_SORT_KEYS = {"accuracy": "validation_accuracy", "loss": "validation_loss", "replicates": "replicate_accuracy"}


def sort_keys() -> dict[str, str]:
    """What `--sort` takes, and the column that it means: full names, and the heads that the table shows."""
    full = {name: name for name in (*SORT_KEYS, *HYPERPARAMETER_NAMES)}
    return {**full, **_SORT_KEYS, **{head: name for name, head in SHORT_NAMES.items()}}


def as_json(experiment: str, ranked: Sequence[Ranked], openings: Sequence[TestSetUse] = ()) -> str:
    """One object: `experiment`, `metric`, `trials`, `test_openings`."""
    content = {
        "experiment": experiment,
        "metric": METRIC,
        "trials": [row.as_dict() for row in ranked],
        "test_openings": [opening.model_dump() for opening in openings],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def as_csv(ranked: Sequence[Ranked], parameters: Sequence[str]) -> str:
    """A row a trial; full precision."""
    return trials_csv(ranked, parameters).rstrip("\n")


def as_markdown(ranked: Sequence[Ranked], parameters: Sequence[str]) -> str:
    """A table for a README or an issue."""
    header = _header(ranked)
    lines = [
        _markdown_row([*header, *parameters]),
        _markdown_row(["---:"] * (len(header) + len(parameters))),
    ]
    for row in ranked:
        cells = _cells(row, parameters, live=True)
        lines.append(_markdown_row([cells[name] for name in (*header, *parameters)]))
    return "\n".join(lines)


def as_table(
    ranked: Sequence[Ranked],
    parameters: Sequence[str],
    width: int | None = None,
    live: bool = True,
    most_rows: int | None = None,
) -> str:
    """Aligned columns; styled and fitted to `width` if it is given, plain and as wide as it needs otherwise.

    A line parts the ranks that rest on replicates from the others.

    Args:
        ranked: rows.
        parameters: hyperparameters that get a column.
        width: of the terminal, in characters.
        live: whether the search runs now; if not, running trials are shown as unfinished.
        most_rows: that are shown; None shows all.
    """
    n_confirmed, in_table = n_by_replicates(ranked), ranked[:most_rows]
    rows = [_cells(row, parameters, live) for row in in_table]
    # A narrow terminal keeps the results, and as many hyperparameters as fit.
    shown = list(_header(ranked))
    for name in _MISSED_FIRST:
        # Rank, trial and one accuracy stay, however narrow it is.
        if name in shown and len(shown) > 3 and not _fits(shown, rows, width):
            shown.remove(name)
    left_out = list(parameters)
    while left_out and _fits([*shown, left_out[0]], rows, width):
        shown.append(left_out.pop(0))
    table = Table(box=_BOX, pad_edge=False, show_edge=False)
    for name in shown:
        table.add_column(_title(name), justify="left" if name == "status" else "right", no_wrap=True)
    for i, (row, cells) in enumerate(zip(in_table, rows, strict=True), 1):
        style = {"completed": "", "stopped": "dim", "running": "cyan", "failed": "red", "diverged": "red"}[row.status]
        table.add_row(*(Text(cells[name]) for name in shown), style=style, end_section=i == n_confirmed < len(rows))
    buffer = StringIO()
    console = Console(file=buffer, width=width or 400, force_terminal=width is not None)
    console.print(table)
    lines = [line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines()]
    if 0 < n_confirmed < len(rows):
        baseline = ", the baseline by its replicates" if any(row.replicates for row in in_table[n_confirmed:]) else ""
        lines.append(f"(above the line: ranked by replicates; below it: by the accuracy in the search{baseline})")
    if len(rows) < len(ranked):
        lines.append(f"(the first {len(rows):,} of {len(ranked):,} trials: --top N shows more, --format csv all)")
    if left_out:
        lines.append(f"(wider terminals also show {', '.join(left_out)})")
    return "\n".join([*lines, *_reasons(ranked)])


def _reasons(ranked: Sequence[Ranked]) -> list[str]:
    """Why trials failed or do not count."""
    bad = [row for row in ranked if row.status == "failed" or row.excluded]
    lines = [f"trial {row.trial}: {printable(row.reason)}" for row in bad[:MOST_REASONS]]
    if len(bad) > MOST_REASONS:
        lines.append(f"(and {len(bad) - MOST_REASONS:,} more that failed or do not count: --format csv says why)")
    return lines


def _header(ranked: Sequence[Ranked]) -> tuple[str, ...]:
    return _HEADER + _REPLICATE_HEADER if any(row.replicates for row in ranked) else _HEADER


def _cells(row: Ranked, parameters: Sequence[str], live: bool) -> dict[str, str]:
    """By column."""
    values = row.config.as_dict()
    exempt = " (baseline)" if row.baseline else " (audit)" if row.audit else ""
    return {
        "rank": str(row.rank),
        "trial": f"{row.trial}{exempt}",
        "status": "unfinished" if row.status == "running" and not live else row.status,
        "epochs": str(row.epochs),
        "accuracy": "-" if row.validation_accuracy is None else f"{row.validation_accuracy:.2%}",
        "loss": "-" if row.validation_loss is None else f"{row.validation_loss:.4f}",
        "seconds": f"{row.seconds:.1f}",
        "replicates": f"{replicate_text(row.replicates)} ({row.replicates.n_runs})" if row.replicates else "-",
        "tied": "=" if row.tied else "",
        **{name: short(values[name]) for name in parameters},
    }


def _title(name: str) -> str:
    return SHORT_NAMES.get(name, name)


def _fits(shown: Sequence[str], rows: Sequence[Mapping[str, str]], width: int | None) -> bool:
    widths = [max(map(len, [_title(name), *(row[name] for row in rows)])) for name in shown]
    return width is None or sum(widths) + GAP * (len(shown) - 1) <= width


def short(value: Number) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def compact(values: Mapping[str, Number]) -> str:
    """Hyperparameters on one line, three significant digits each."""
    return " ".join(f"{SHORT_NAMES.get(name, name)}={short(value)}" for name, value in values.items())


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
