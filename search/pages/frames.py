"""A search as pandas frames and an HTML table, for notebooks. Pure functions of the history."""

import html

import pandas as pd

from search.analysis.csv_files import CURVE_COLUMNS, REPLICATE_COLUMNS, curve_rows, replicate_rows, trial_rows
from search.analysis.ranking import RESULT_COLUMNS, lead_sentence, rank
from search.experiment.history import History
from search.policy.budget import progress_text
from spaces.parameters import HYPERPARAMETER_NAMES
from spaces.printable import printable
from spaces.schema import Space

MOST_ROWS = 20  # rows of the HTML table: thousands of rows would slow the page of the notebook
_OFTEN_MISSING = ("validation_accuracy", "validation_loss", "replicate_accuracy", "replicate_half_width")
_PERCENTAGES = ("validation_accuracy", "replicate_accuracy", "replicate_half_width")


def trials_frame(history: History) -> pd.DataFrame:
    """One row per trial, best first; the index is the number of the trial."""
    frame = pd.DataFrame(trial_rows(rank(history)), columns=[*RESULT_COLUMNS, *HYPERPARAMETER_NAMES])
    # pandas makes a column of None only an object column, and shows "None".
    return frame.astype(dict.fromkeys(_OFTEN_MISSING, float)).set_index("trial")


def curves_frame(history: History) -> pd.DataFrame:
    """One row per trial and epoch."""
    return pd.DataFrame(curve_rows(history), columns=list(CURVE_COLUMNS))


def replicates_frame(history: History) -> pd.DataFrame:
    """One row per replicate and epoch."""
    return pd.DataFrame(replicate_rows(history), columns=list(REPLICATE_COLUMNS))


def as_html(name: str, space: Space, history: History, chance: float | None = None) -> str:
    """The leaderboard as HTML for a notebook; all text from the experiment is escaped."""
    frame = trials_frame(history)
    shown = ["rank", "status", "epochs", "validation_accuracy", "validation_loss"]
    shown += ["replicate_accuracy", "replicate_half_width", "n_replicates"] if history.replicates else []
    table = frame.loc[:, [*shown, *space.searched]].head(MOST_ROWS)
    formats = {name: "{:.2%}".format for name in _PERCENTAGES if name in table}
    n_hidden = len(frame) - len(table)
    more = f"<p>and {n_hidden} more, in <code>trials</code></p>" if n_hidden else ""
    title = f"<b>{html.escape(printable(name))}</b>: {progress_text(history, space)}."
    sentence = html.escape(printable(lead_sentence(history, rank(history, chance), chance)))
    body = table.to_html(formatters=formats, float_format="{:.3g}".format, na_rep="", escape=True, border=0)
    return f"<div><p>{title} {sentence}</p>{body}{more}</div>"
