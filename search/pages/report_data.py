"""The data of a report, read from an experiment, and the commands that it offers."""

import math
from dataclasses import dataclass
from typing import NamedTuple

from search.analysis.ranking import Ranked, rank, winner
from search.experiment.command_lines import command_line, command_on, resume_line
from search.experiment.final_results import FinalResults, read_final_results
from search.experiment.folder import Experiment
from search.experiment.history import History, Trial
from search.experiment.manifest import Manifest, seconds_used
from search.policy.space_change import counting_in
from search.policy.state import is_done
from spaces.errors import InputError
from spaces.schema import Space

MORE_TRIALS = 16
MORE_EPOCHS = 0.5  # share of the epoch budget


class Command(NamedTuple):
    """A command line and its purpose."""

    what: str
    line: str


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
    ranked = rank(history)
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


def commands(known: ReportData) -> list[Command]:
    """The commands of the page."""
    experiment = known.experiment
    again = command_line("run", experiment.folder, results=experiment.results)
    found = [Command("The same search again", again), _further(known)]
    found.append(Command("Whether the search was any good, and what to change", command_on("diagnose", experiment)))
    if known.best:
        found.append(Command("Retrain the winner, test it once, export it", command_on("retrain", known.experiment)))
    return [*found, Command("This page", command_on("report", experiment))]


def is_unfinished(known: ReportData) -> bool:
    """Whether a session would have something to train, or to repair after a kill."""
    state = known.manifest.state
    return state == "running" or (state != "finished" and not is_done(known.history, known.space))


def go_on_line(known: ReportData) -> str:
    """The command that resumes the search."""
    return resume_line(known.experiment, _time_words(known))


def _further(known: ReportData) -> Command:
    if known.is_live:
        return Command("Watch it while it runs", command_on("leaderboard", known.experiment, "--watch"))
    if is_unfinished(known):
        return Command("Resume this search", go_on_line(known))
    search = known.space.search
    more = "" if search.trials is None else f" --add-trials {MORE_TRIALS}"
    if search.epoch_budget is not None:
        more += f" --add-epochs {math.ceil(MORE_EPOCHS * search.epoch_budget)}"
    return Command("Resume this search", f"{go_on_line(known)}{more}")


def _time_words(known: ReportData) -> str:
    """An option with twice the used time, where the time budget is used up; empty otherwise."""
    budget_s = known.space.search.time_budget_s
    used_s = seconds_used(known.manifest.sessions, known.history)
    if budget_s is None or (used_s < budget_s and known.manifest.state != "time budget used"):
        return ""
    return f" --time-budget {math.ceil(2 * used_s / 60)}m"
