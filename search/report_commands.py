"""What to type to have a search again, to go on with it, or to see more of it, from where it lies."""

import math
from dataclasses import dataclass

from search.manifest import seconds_used
from search.options import experiment_words, results_words
from search.report_known import Known
from search.state import is_done
from spaces.printable import shell_word

MORE_TRIALS = 16
# Of the epochs that the search may train already.
MORE_EPOCHS = 0.5


@dataclass(frozen=True, slots=True)
class Command:
    """A command to type, and what it does."""

    what: str
    line: str


def commands(known: Known) -> list[Command]:
    """All that the page offers."""
    experiment, words = known.experiment, experiment_words(known.experiment)
    again = f"python -m search.run {shell_word(experiment.folder)}{results_words(experiment.results)}"
    found = [Command("The same search again", again), _further(known, words)]
    found.append(Command("Whether the search was any good, and what to change", f"python -m search.diagnose {words}"))
    if known.best:
        found.append(Command("Retrain the winner, test it once, export it", retrain_line(known)))
    return [*found, Command("This page", f"python -m search.report {words}")]


def is_unfinished(known: Known) -> bool:
    """Whether a session would find something to train, or to put in order after a kill."""
    state = known.manifest.state
    return state == "running" or (state != "finished" and not is_done(known.history, known.space))


def go_on_line(known: Known) -> str:
    """Resumes the search where it was."""
    return f"python -m search.run --resume {experiment_words(known.experiment)}{_time_words(known)}"


def retrain_line(known: Known) -> str:
    return f"python -m search.retrain {experiment_words(known.experiment)}"


def _further(known: Known, words: str) -> Command:
    if known.is_live:
        return Command("Watch it while it runs", f"python -m search.leaderboard {words} --watch")
    if is_unfinished(known):
        return Command("Go on with this one", go_on_line(known))
    search = known.space.search
    more = "" if search.trials is None else f" --add-trials {MORE_TRIALS}"
    if search.epoch_budget is not None:
        more += f" --add-epochs {math.ceil(MORE_EPOCHS * search.epoch_budget)}"
    return Command("Go on with this one", f"{go_on_line(known)}{more}")


def _time_words(known: Known) -> str:
    """A longer time budget, where it is used up: twice what was used."""
    budget_s = known.space.search.time_budget_s
    used_s = seconds_used(known.manifest.sessions, known.history)
    if budget_s is None or (used_s < budget_s and known.manifest.state != "time budget used"):
        return ""
    return f" --time-budget {math.ceil(2 * used_s / 60)}m"
