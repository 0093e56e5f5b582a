"""The data of a report, read from an experiment."""

from dataclasses import dataclass

from search.analysis.ranking import Ranked, rank, winner
from search.experiment.final_results import FinalResults, read_final_results
from search.experiment.folder import Experiment
from search.experiment.history import History, Trial
from search.experiment.manifest import Manifest
from search.policy.space_change import counting_in
from spaces.errors import InputError
from spaces.schema import Space


@dataclass(frozen=True)
class ReportData:
    """The data of a report.

    Attributes:
        ranked: all trials, best first.
        counting: trials inside the space of the journal and of `experiment.yaml`.
        is_live: whether the search was running when the data was read.
        best: row of the winner; None without a completed trial, or where the best trial is at chance.
        final: results of retraining; None where they are missing or damaged.
        final_problem: why `final` is damaged; empty otherwise.
    """

    experiment: Experiment
    space: Space
    manifest: Manifest
    history: History
    ranked: list[Ranked]
    counting: list[Trial]
    is_live: bool
    best: Ranked | None
    final: FinalResults | None
    final_problem: str

    @property
    def winner_number(self) -> int | None:
        return self.best.trial if self.best else None


def read_all(experiment: Experiment) -> ReportData:
    """Read the data of a report.

    Raises:
        InputError: journal, space or manifest cannot be read.
    """
    history, space, manifest = experiment.history(), experiment.space, experiment.manifest
    ranked = rank(history, manifest.data.chance)
    final, problem = None, ""
    try:
        final = read_final_results(experiment)
    except InputError as error:
        problem = error.lines[0]
    return ReportData(
        experiment=experiment,
        space=space,
        manifest=manifest,
        history=history,
        ranked=ranked,
        counting=counting_in(space, history),
        # A retraining holds the lock too.
        is_live=manifest.state == "running" and experiment.is_live(),
        best=winner(ranked),
        final=final,
        final_problem=problem,
    )
