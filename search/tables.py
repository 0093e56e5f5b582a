"""The leaderboard as a table, CSV, JSON or Markdown."""

import json
from collections.abc import Mapping, Sequence
from io import StringIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from search.experiment import trials_csv
from search.manifest import Opening
from search.ranking import METRIC, Ranked, fresh_text
from spaces.parameters import Number
from spaces.printable import printable

# For screens; CSV, JSON and Markdown keep the full names.
SHORT_NAMES = {"shift_scale_rotate_p": "ssr_p", "coarse_dropout_p": "hole_p"}

_HEADER = ("rank", "trial", "status", "epochs", "accuracy", "loss", "seconds")
_FRESH_HEADER = ("fresh runs", "tied")


def as_json(experiment: str, ranked: Sequence[Ranked], openings: Sequence[Opening] = ()) -> str:
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
    lines += [_markdown_row(_cells(row, header, parameters)) for row in ranked]
    return "\n".join(lines)


def as_table(ranked: Sequence[Ranked], parameters: Sequence[str], width: int | None = None, live: bool = True) -> str:
    """Aligned columns; styled and fitted to `width` if it is given, plain and as wide as it needs otherwise.

    Args:
        ranked: rows.
        parameters: hyperparameters that get a column.
        width: of the terminal, in characters.
        live: whether the search runs now; if not, running trials are shown as unfinished.
    """
    # A narrow terminal keeps the results and as many hyperparameters as fit.
    header = _header(ranked)
    fixed_width = 62 if header == _HEADER else 86
    n_shown = len(parameters) if width is None else max(0, (width - fixed_width) // 11)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name, justify="left" if name == "status" else "right", no_wrap=True)
    for name in parameters[:n_shown]:
        table.add_column(SHORT_NAMES.get(name, name), justify="right", no_wrap=True)
    for row in ranked:
        style = {"completed": "", "stopped": "dim", "running": "cyan", "failed": "red", "diverged": "red"}[row.status]
        cells = _cells(row, header, parameters[:n_shown])
        if row.status == "running" and not live:
            cells[_HEADER.index("status")] = "unfinished"
        table.add_row(*(Text(cell) for cell in cells), style=style)
    buffer = StringIO()
    console = Console(file=buffer, width=width or 400, force_terminal=width is not None)
    console.print(table)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").splitlines())
    for row in ranked:
        if row.status == "failed" or row.set_aside:
            text += f"\ntrial {row.trial}: {printable(row.reason)}"
    if n_shown < len(parameters):
        text += f"\n(wider terminals also show {', '.join(parameters[n_shown:])})"
    return text


def _header(ranked: Sequence[Ranked]) -> tuple[str, ...]:
    return _HEADER + _FRESH_HEADER if any(row.fresh for row in ranked) else _HEADER


def _cells(row: Ranked, header: Sequence[str], parameters: Sequence[str]) -> list[str]:
    accuracy = "-" if row.validation_accuracy is None else f"{row.validation_accuracy:.2%}"
    loss = "-" if row.validation_loss is None else f"{row.validation_loss:.4f}"
    exempt = " (baseline)" if row.baseline else " (explored)" if row.explored else ""
    values = row.config.as_dict()
    fixed = [str(row.rank), f"{row.trial}{exempt}", row.status, str(row.epochs), accuracy, loss, f"{row.seconds:.1f}"]
    if len(header) > len(_HEADER):
        fresh = row.fresh
        fixed += [f"{fresh_text(fresh)} ({fresh.n_runs})" if fresh else "-", "=" if row.tied else ""]
    return fixed + [short(values[name]) for name in parameters]


def short(value: Number) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def compact(values: Mapping[str, Number]) -> str:
    """Hyperparameters on one line, three significant digits each."""
    return " ".join(f"{SHORT_NAMES.get(name, name)}={short(value)}" for name, value in values.items())


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
