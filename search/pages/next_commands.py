"""Commands that repeat, resume or analyse a search, with the paths of its experiment."""

import math
from dataclasses import dataclass

from search.experiment.command_lines import command_line, command_on, resume_line
from search.experiment.manifest import seconds_used
from search.pages.report_data import ReportData
from search.policy.state import is_done

MORE_TRIALS = 16
MORE_EPOCHS = 0.5  # share of the epoch budget


@dataclass(frozen=True, slots=True)
class Command:
    """A command line and its purpose."""

    what: str
    line: str


def commands(known: ReportData) -> list[Command]:
    """The commands of the page."""
    experiment = known.experiment
    again = command_line("run", experiment.folder, results=experiment.results)
    found = [Command("The same search again", again), _further(known)]
    found.append(Command("Whether the search was any good, and what to change", command_on("diagnose", experiment)))
    if known.best:
        found.append(Command("Retrain the winner, test it once, export it", retrain_line(known)))
    return [*found, Command("This page", command_on("report", experiment))]


def is_unfinished(known: ReportData) -> bool:
    """Whether a session would have something to train, or to repair after a kill."""
    state = known.manifest.state
    return state == "running" or (state != "finished" and not is_done(known.history, known.space))


def go_on_line(known: ReportData) -> str:
    """The command that resumes the search."""
    return resume_line(known.experiment, _time_words(known))


def retrain_line(known: ReportData) -> str:
    return command_on("retrain", known.experiment)


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
