"""An experiment in a notebook: `from search import Experiment`."""

import html
from typing import TYPE_CHECKING

import pandas as pd

from search.analysis.csv_files import CURVE_COLUMNS, REPLICATE_COLUMNS, curve_rows, replicate_rows, trial_rows
from search.analysis.ranking import RESULT_COLUMNS, lead_sentence, rank, winner
from search.experiment import folder
from search.experiment.history import History
from search.policy.budget import progress_text
from search.policy.space_change import counting_in
from spaces.errors import InputError
from spaces.parameters import HYPERPARAMETER_NAMES, Number
from spaces.printable import printable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_ROWS = 20  # rows of the HTML table: thousands of rows would slow the page of the notebook
_OFTEN_MISSING = ("validation_accuracy", "validation_loss", "replicate_accuracy", "replicate_half_width")
_PERCENTAGES = ("validation_accuracy", "replicate_accuracy", "replicate_half_width")


class Experiment(folder.Experiment):
    """One folder under `results/`, as pandas frames and plotly figures.

    `Experiment("results/NAME")` shows the leaderboard. While the search runs, each access reads the journal again.
    The arguments are those of `search.experiment.folder.Experiment`.
    """

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial, best first, with the columns of `trials.csv`; the index is the trial's number."""
        return _trials_frame(self._existing_history())

    @property
    def curves(self) -> pd.DataFrame:
        """One row per trial and epoch, with the columns of `curves.csv`."""
        return pd.DataFrame(curve_rows(self._existing_history()), columns=list(CURVE_COLUMNS))

    @property
    def replicates(self) -> pd.DataFrame:
        """One row per replicate and epoch, with the columns of `replicates.csv`; empty without replicates."""
        return pd.DataFrame(replicate_rows(self._existing_history()), columns=list(REPLICATE_COLUMNS))

    @property
    def best(self) -> dict[str, Number] | None:
        """Hyperparameters of the winner; None before a trial has completed, and if the best trial is at chance."""
        best = winner(rank(self._existing_history(), self.manifest.data.chance))
        return best.config.as_dict() if best else None

    @property
    def figures(self) -> "dict[str, Figure]":
        """The figures of the report about the search, by name; a figure that has no data yet is left out."""
        from search.pages import plots

        space, history, is_live = self.space, self._existing_history(), self.is_live()
        best = winner(rank(history, self.manifest.data.chance))
        trials, number = counting_in(space, history), best.trial if best else None
        made = {
            "learning_curves": plots.learning_curves(trials, number, space.rung_epochs, is_live),
            "optimisation_history": plots.optimisation_history(trials, number, is_live),
            "parallel_coordinates": plots.parallel_coordinates(space, trials, number),
            **{f"slice_{name}": figure for name, figure in plots.slices(space, trials, number, is_live).items()},
        }
        return {name: figure for name, figure in made.items() if figure is not None}

    def _repr_html_(self) -> str:
        """The leaderboard as HTML; all text from the experiment is escaped."""
        history, space, chance = self._existing_history(), self.space, self.manifest.data.chance
        frame = _trials_frame(history)
        shown = ["rank", "status", "epochs", "validation_accuracy", "validation_loss"]
        shown += ["replicate_accuracy", "replicate_half_width", "n_replicates"] if history.replicates else []
        table = frame.loc[:, [*shown, *space.searched]].head(MOST_ROWS)
        formats = {name: "{:.2%}".format for name in _PERCENTAGES if name in table}
        n_hidden = len(frame) - len(table)
        more = f"<p>and {n_hidden} more, in <code>trials</code></p>" if n_hidden else ""
        title = f"<b>{html.escape(printable(self.name))}</b>: {progress_text(history, space)}."
        sentence = html.escape(printable(lead_sentence(history, rank(history, chance), chance)))
        body = table.to_html(formatters=formats, float_format="{:.3g}".format, na_rep="", escape=True, border=0)
        return f"<div><p>{title} {sentence}</p>{body}{more}</div>"

    def _existing_history(self) -> History:
        # A folder whose name is misspelt must not look like a search without trials.
        if not folder.is_experiment(self.folder):
            raise InputError(
                f"{self.folder}: is not an experiment's folder, which holds experiment.yaml and journal.jsonl."
            )
        return self.history()


def _trials_frame(history: History) -> pd.DataFrame:
    frame = pd.DataFrame(trial_rows(rank(history)), columns=[*RESULT_COLUMNS, *HYPERPARAMETER_NAMES])
    # pandas makes a column of None only an object column, and shows "None".
    return frame.astype(dict.fromkeys(_OFTEN_MISSING, float)).set_index("trial")
