"""The tables of an experiment as CSV: `trials.csv`, `curves.csv` and `replicates.csv`."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from search.analysis.ranking import RESULT_COLUMNS, Ranked, rank
from search.experiment.folder import Experiment
from search.experiment.history import History
from spaces.parameters import HYPERPARAMETER_NAMES
from spaces.printable import printable
from trainable.files import write_text

# Text that starts with one of these is a formula for a spreadsheet; OWASP lists them under "CSV injection".
_FORMULA_STARTS = ("=", "+", "-", "@")

CURVE_COLUMNS = (
    "trial",
    "epoch",
    "lr",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "validation_balanced_accuracy",
    "validation_macro_f1",
    "train_s",
    "validation_s",
)
_REPLICATE_EPOCH_COLUMNS = tuple(name for name in CURVE_COLUMNS if name not in ("trial", "lr", "train_accuracy"))
REPLICATE_COLUMNS = ("run", "trial", "block", *_REPLICATE_EPOCH_COLUMNS)


def write_tables(experiment: Experiment, history: History) -> None:
    """Write `trials.csv`, `curves.csv` and, if there are replicates, `replicates.csv`; each file atomically."""
    write_text(experiment.folder / "trials.csv", trials_csv(rank(history)))
    write_text(experiment.folder / "curves.csv", csv_text(CURVE_COLUMNS, curve_rows(history)))
    if history.replicates:
        write_text(experiment.folder / "replicates.csv", csv_text(REPLICATE_COLUMNS, replicate_rows(history)))


def trials_csv(ranked: Sequence[Ranked], parameters: Sequence[str] = HYPERPARAMETER_NAMES) -> str:
    """One row per trial, in the given order, with full precision.

    Args:
        ranked: rows of the leaderboard.
        parameters: names of the hyperparameters that get a column.
    """
    return csv_text([*RESULT_COLUMNS, *parameters], trial_rows(ranked, parameters))


def trial_rows(ranked: Sequence[Ranked], parameters: Sequence[str] = HYPERPARAMETER_NAMES) -> list[list[Any]]:
    """Values of `RESULT_COLUMNS` and of the hyperparameters, one row per trial."""
    contents = [row.as_dict() for row in ranked]
    return [
        [*(content[name] for name in RESULT_COLUMNS), *(content["config"][name] for name in parameters)]
        for content in contents
    ]


def curve_rows(history: History) -> list[list[Any]]:
    """Values of `CURVE_COLUMNS`, one row per trial and epoch."""
    trials = history.trials.values()
    return [[getattr(epoch, column) for column in CURVE_COLUMNS] for trial in trials for epoch in trial.epochs]


def replicate_rows(history: History) -> list[list[Any]]:
    """Values of `REPLICATE_COLUMNS`, one row per replicate and epoch."""
    return [
        [run.number, run.trial, run.block, *(getattr(epoch, column) for column in _REPLICATE_EPOCH_COLUMNS)]
        for run in history.replicates.values()
        for epoch in run.epochs
    ]


def csv_text(header: Sequence[str], rows: list[list[Any]]) -> str:
    """CSV with `\\n` line ends; None is an empty field, booleans are true and false.

    Text is made printable (see `printable`), and gets an apostrophe in front if a spreadsheet would run it as a
    formula; numbers have full precision.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([_csv_field(value) for value in row])
    return buffer.getvalue()


def _csv_field(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return value
    text = printable(value)  # also removes tabs and returns, with which a formula can start
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text
