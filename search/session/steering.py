"""Requests of a user in another terminal to a running search (`search.steer`).

A request is an event in a file of its own, which the search takes up at the next turn of Ray's loop, and journals.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from search.analysis.columns import compact
from search.experiment.command_lines import resume_line
from search.experiment.events import ConfigurationAdded, Event, FinishRequested, TrialEnded
from search.experiment.folder import Experiment
from search.experiment.journal import event_from_line, event_line
from search.policy import budget
from spaces.counted import counted
from spaces.errors import InputError, RunError, first_line
from spaces.loader import configuration_from
from spaces.plain_files import read_plain
from trainable.files import write_text

MAX_REQUEST_BYTES = 2**16
ANSWER_WITHIN_S = 60.0  # Ray's loop may wait for the start of a worker
BY_USER = "stopped by the user (search.steer)"
_POLL_S = 0.2


def request_of(experiment: Experiment, action: str, values: Sequence[str]) -> Event:
    """A request to the search that runs in this folder.

    Args:
        experiment: of the search.
        action: `stop`, `add` or `finish`.
        values: the number of a running trial; `name=value` each; or nothing.

    Raises:
        InputError: the request is not valid, comes too late, or no search runs.
    """
    experiment.must_be_plain()
    if not experiment.is_live():
        raise InputError(f"{experiment.location}: no search runs there now. Resume it with: {resume_line(experiment)}")
    history, given = experiment.history(), " ".join(values) or "nothing"
    match action:
        case "stop":
            running = [str(trial.number) for trial in history.unfinished]
            if given not in running:
                numbers = ", ".join(running) or "none runs"
                raise InputError(f"stop is given {given}, but needs the number of one running trial: {numbers}.")
            return TrialEnded(int(given), "stopped", BY_USER, time.time())
        case "add":
            config = configuration_from(values, experiment.space)
            if budget.is_tried(config, history):
                raise InputError(f"A trial has {given} and the baseline's other values already. Change a value.")
            if history.is_finishing or budget.is_used(history, experiment.space):
                raise InputError("The search starts no more trials: its epochs are used, or it was told to finish.")
            return ConfigurationAdded(config, time.time())
        case _:
            if values:
                raise InputError(f"finish takes no value, but {given} was given.")
            return FinishRequested(time.time())


def send(experiment: Experiment, request: Event, within_s: float = ANSWER_WITHIN_S) -> None:
    """Leave a request for the search, and wait until it has taken it up.

    Raises:
        RunError: the search does not answer; the request is withdrawn.
    """
    folder = _folder(experiment)
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.time_ns()}-{os.getpid()}.json"
    write_text(path, event_line(request).decode())
    until_s = time.monotonic() + within_s
    while path.exists():
        if time.monotonic() > until_s or not experiment.is_live():
            path.unlink(missing_ok=True)
            raise RunError(
                f"{experiment.location}: the search did not answer within {within_s:.0f} s, and the request is "
                f"withdrawn. Give the command on the machine on which search.run runs, while it trains."
            )
        time.sleep(_POLL_S)


def answer_text(request: Event, experiment: Experiment) -> str:
    """What the search has done with a request."""
    history = experiment.history()
    match request:
        case TrialEnded(trial=number):
            trial = history.trials[number]
            if trial.end and trial.end.reason != BY_USER:
                return f"Trial {number} ended before: {trial.status}."
            done = counted(trial.n_epochs, "epoch")
            return f"Trial {number} is stopped after {done}; its worker is free when it ends the present one."
        case ConfigurationAdded(config=config):
            return f"Added, and tried next: {compact(experiment.space.searched_values(config))}"
        case _:
            running = counted(len(history.unfinished), "trial")
            return f"No more trials are started: {running} still running, then replicates."


def received(experiment: Experiment, note: Callable[[str], None]) -> Iterator[Event]:
    """The requests that wait, oldest first; each is removed. `note` is told of files that are no requests."""
    folder = _folder(experiment)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            request = event_from_line(read_plain(path, MAX_REQUEST_BYTES))
            if not isinstance(request, TrialEnded | ConfigurationAdded | FinishRequested):
                raise ValueError("no such request")
        except FileNotFoundError:
            continue  # its sender has withdrawn it
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            note(f"{path.name} in {folder.name}/ is not a request to the search ({first_line(error)}); it is removed")
        else:
            yield request
        path.unlink(missing_ok=True)


def forget(experiment: Experiment) -> None:
    """Remove the requests that an earlier session did not take up."""
    shutil.rmtree(_folder(experiment), ignore_errors=True)


def close(experiment: Experiment) -> None:
    """Take up no more requests. Those that wait stay, so that `send` sees that they were not taken up."""
    with contextlib.suppress(OSError):  # not empty, or not there
        _folder(experiment).rmdir()


def _folder(experiment: Experiment) -> Path:
    return experiment.folder / "requests"
