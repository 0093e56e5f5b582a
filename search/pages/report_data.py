"""What a report reads of an experiment."""

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
    """All that was read of an experiment.

    Attributes:
        ranked: all trials, best first.
        counting: trials that lie in the space as it is now, in the journal and in `experiment.yaml`.
        is_live: whether the search was running when this was read.
        best: the winner's row; None while no trial has completed, and where the best is at chance.
        final: what retraining left; None where there is nothing, or nothing that can be shown.
        final_problem: why it cannot be shown.
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
    """Everything that a report is made from.

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
