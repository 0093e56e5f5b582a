"""An experiment in a notebook: `from search import Experiment`."""

from typing import TYPE_CHECKING

from search.analysis.ranking import rank, winner
from search.experiment import folder
from search.experiment.history import History
from spaces.errors import InputError
from spaces.parameters import Number

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


class Experiment(folder.Experiment):
    """One folder under `results/`, as pandas frames and plotly figures.

    `Experiment("results/NAME")` shows the leaderboard. While the search runs, each access reads the journal again.
    The arguments are those of `search.experiment.folder.Experiment`.
    """

    @property
    def trials(self) -> "DataFrame":
        """One row per trial, best first, with the columns of `trials.csv`; the index is the trial's number."""
        from search.pages.frames import trials_frame

        return trials_frame(self._existing_history())

    @property
    def curves(self) -> "DataFrame":
        """One row per trial and epoch, with the columns of `curves.csv`."""
        from search.pages.frames import curves_frame

        return curves_frame(self._existing_history())

    @property
    def replicates(self) -> "DataFrame":
        """One row per replicate and epoch, with the columns of `replicates.csv`; empty without replicates."""
        from search.pages.frames import replicates_frame

        return replicates_frame(self._existing_history())

    @property
    def best(self) -> dict[str, Number] | None:
        """Hyperparameters of the winner; None before a trial has completed, and if the best trial is at chance."""
        best = winner(rank(self._existing_history(), self.manifest.data.chance))
        return best.config.as_dict() if best else None

    @property
    def figures(self) -> "dict[str, Figure]":
        """The figures of the report about the search, by name; a figure that has no data yet is left out."""
        from search.pages.plots import learning_curves, optimisation_history, parallel_coordinates, slices
        from search.policy.space_change import counting_in
        from search.policy.study import study_of

        space, history, is_live = self.space, self._existing_history(), self.is_live()
        best = winner(rank(history, self.manifest.data.chance))
        trials, number = counting_in(space, history), best.trial if best else None
        made = {
            "learning_curves": learning_curves(trials, number, space.rung_epochs, is_live),
            "optimisation_history": optimisation_history(trials, number, study_of(space, history), is_live),
            "parallel_coordinates": parallel_coordinates(space, trials, number),
            **{f"slice_{name}": figure for name, figure in slices(space, trials, number, is_live).items()},
        }
        return {name: figure for name, figure in made.items() if figure is not None}

    def _repr_html_(self) -> str:
        from search.pages.frames import as_html

        return as_html(self.name, self.space, self._existing_history(), self.manifest.data.chance)

    def _existing_history(self) -> History:
        # A folder whose name is misspelt must not look like a search without trials.
        if not folder.is_experiment(self.folder):
            raise InputError(
                f"{self.folder}: is not an experiment's folder, which holds experiment.yaml and journal.jsonl."
            )
        return self.history()
