"""An experiment in a notebook: `from search import Experiment`."""

import html
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from search.analysis.csv_files import CURVE_COLUMNS, REPLICATE_COLUMNS, curve_rows, replicate_rows, trial_rows
from search.analysis.ranking import RESULT_COLUMNS, Ranked, lead_sentence, rank, winner
from search.experiment import folder
from search.experiment.command_lines import DEFAULT_RESULTS
from search.policy.budget import progress_text
from search.retraining.predictor import Predictor
from search.terminal.tables import fitting_columns
from spaces.parameters import HYPERPARAMETER_NAMES
from spaces.printable import printable
from trainable.metric import METRICS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_ROWS = 20  # rows of the HTML table: thousands of rows would slow the page of the notebook
_RESULTS = tuple(metric.column for metric in METRICS.values())
_OFTEN_MISSING = tuple(name for name in RESULT_COLUMNS if name.startswith(("validation_", "forecast_", "replicate_")))


# Names of figures in the report that are longer in a notebook.
_FIGURE_NAMES = {"curves": "learning_curves", "history": "optimisation_history", "parallel": "parallel_coordinates"}


class Experiment(folder.Experiment):
    """One experiment, as pandas frames and plotly figures; it shows itself as the leaderboard.

    While the search runs, each access reads the journal again.

    Args:
        experiment: a name under `results`, or a path to the experiment's folder.
        results: folder that holds experiments.

    Raises:
        InputError: there is no such experiment; names those that exist.
    """

    def __init__(self, experiment: Path | str, results: Path | str = DEFAULT_RESULTS) -> None:
        super().__init__(folder.open_experiment(str(experiment), Path(results)).folder)

    def __dir__(self) -> list[str]:
        """What the Tab key offers: not the methods that write to the folder."""
        return ["folder", "name", "space", *(name for name in vars(Experiment) if not name.startswith("_"))]

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, best first, with the columns of `trials.csv`; the index is the trial's number."""
        frame = pd.DataFrame(trial_rows(rank(self.history())), columns=[*RESULT_COLUMNS, *HYPERPARAMETER_NAMES])
        # pandas makes a column of None only an object column, and shows "None".
        return frame.astype(dict.fromkeys(_OFTEN_MISSING, float)).set_index("trial")

    @property
    def curves(self) -> pd.DataFrame:
        """One row per trial and epoch, with the columns of `curves.csv`."""
        frame = pd.DataFrame(curve_rows(self.history()), columns=list(CURVE_COLUMNS))
        return frame.astype(dict.fromkeys(_RESULTS, float))

    @property
    def replicates(self) -> pd.DataFrame:
        """One row per replicate and epoch, with the columns of `replicates.csv`; empty without replicates."""
        frame = pd.DataFrame(replicate_rows(self.history()), columns=list(REPLICATE_COLUMNS))
        return frame.astype(dict.fromkeys(_RESULTS, float))

    @property
    def best(self) -> Ranked | None:
        """The winner's row of the leaderboard, with its hyperparameters as `best.config`.

        None before a trial has completed, and if the best trial is at chance.
        """
        return winner(rank(self.history()))

    @property
    def figures(self) -> "dict[str, Figure]":
        """The figures of the report, by name; a figure that has no data yet is left out."""
        from search.pages.report import report_figures

        return {_FIGURE_NAMES.get(name, name.replace("-", "_")): each for name, each in report_figures(self).items()}

    def predictor(self) -> Predictor:
        """The model that `search.retrain` exported: `labels, probabilities = experiment.predictor()(images)`.

        Raises:
            InputError: the winner was not retrained yet, or the model is damaged.
        """
        return Predictor(self)

    def _repr_html_(self) -> str:
        """The leaderboard as HTML; all text from the experiment is escaped."""
        history, space = self.history(), self.space
        ranked = rank(history)
        columns = fitting_columns(ranked, tuple(space.searched))
        cells = [[column.text_of(row, self.is_live(), absent="") for column in columns] for row in ranked[:MOST_ROWS]]
        table = pd.DataFrame(cells, columns=[column.heading for column in columns])
        n_hidden = len(ranked) - len(table)
        more = f"<p>and {n_hidden} more, in <code>trials</code></p>" if n_hidden else ""
        title = f"<b>{html.escape(printable(self.name))}</b>: {progress_text(history, space)}."
        sentence = html.escape(printable(lead_sentence(history, ranked)))
        body = table.to_html(index=False, escape=True, border=0)
        return f"<div><p>{title} {sentence}</p>{body}{more}</div>"
