"""Requests of a user in another terminal to a running search (`search.steer`).

A request is an event in a file of its own, which the search takes up at the next turn of Ray's loop, and journals.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from search.experiment.events import ConfigurationAdded, Event, FinishRequested, TrialEnded
from search.experiment.folder import Experiment
from search.experiment.journal import event_from_line, event_line
from spaces.errors import RunError, first_line
from spaces.plain_files import read_plain
from trainable.files import write_text

MAX_REQUEST_BYTES = 2**16
ANSWER_WITHIN_S = 60.0  # Ray's loop may wait for the start of a worker
_POLL_S = 0.2


def send(experiment: Experiment, request: Event, within_s: float = ANSWER_WITHIN_S) -> None:
    """Leave a request for the search that runs in this folder, and wait until it has taken it up.

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


def received(experiment: Experiment, note: Callable[[str], None]) -> Iterator[Event]:
    """The requests that wait, oldest first; each is removed. `note` is told of files that are no requests."""
    folder = _folder(experiment)
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            request = event_from_line(read_plain(path, MAX_REQUEST_BYTES))
            if not isinstance(request, TrialEnded | ConfigurationAdded | FinishRequested):
                raise ValueError("no such request")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            note(f"{path.name} in {folder.name}/ is not a request to the search ({first_line(error)}); it is removed")
        else:
            yield request
        path.unlink(missing_ok=True)


def forget(experiment: Experiment) -> None:
    """Remove the requests that an earlier session did not take up."""
    shutil.rmtree(_folder(experiment), ignore_errors=True)


def _folder(experiment: Experiment) -> Path:
    return experiment.folder / "requests"
