"""Steer a running search from another terminal: `python -m search.steer`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from search.cli.options import add_results_argument, chosen_experiment, complete_experiments
from spaces.command import CommandParser, completed, run_command

if TYPE_CHECKING:
    from search.experiment.events import Event
    from search.experiment.history import History
    from spaces.parameters import Hyperparameters
    from spaces.schema import Space

ACTIONS = ("stop", "add", "finish")
BY_USER = "stopped by the user (search.steer)"


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.steer",
        description=(
            "Steer a running search: stop a trial, add a configuration that is the next trial, or finish (no new "
            "trials: running ones end, then come the replicates). To pause a search, press Ctrl-C and resume it later."
        ),
        epilog="example: python -m search.steer first add lr=0.1 momentum=0.9",
    )
    completed(
        parser.add_argument("experiment", metavar="EXPERIMENT", help="a name under the results folder, or a path"),
        complete_experiments,
    )
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument(
        "values",
        nargs="*",
        metavar="VALUE",
        help="stop: number of the trial; add: NAME=VALUE for each hyperparameter, the others are the baseline's",
    )
    add_results_argument(parser)
    return run_command(parser, _steer, arguments)


def _steer(options: argparse.Namespace) -> int:
    from search.experiment.command_lines import resume_line
    from search.session.steering import send
    from spaces.errors import InputError

    experiment = chosen_experiment(options, options.experiment)
    experiment.must_be_plain()
    if not experiment.is_live():
        raise InputError(f"{experiment.location}: no search runs there now. Resume it with: {resume_line(experiment)}")
    space = experiment.space
    request = _request(options, space, experiment.history())
    send(experiment, request)
    print(_answer(request, space, experiment.history()))
    return 0


def _request(options: argparse.Namespace, space: Space, history: History) -> Event:
    """The request as an event.

    Raises:
        InputError: it is not valid, or comes too late.
    """
    import time

    from search.experiment.events import ConfigurationAdded, FinishRequested, TrialEnded
    from search.policy.budget import is_used
    from spaces.errors import InputError

    match options.action:
        case "stop":
            return TrialEnded(_trial_to_stop(options.values, history), "stopped", BY_USER, time.time())
        case "add":
            config = _configuration(options.values, space, history)
            if history.is_finishing or is_used(history, space):
                raise InputError("The search starts no more trials: its epochs are used, or `finish` was asked for.")
            return ConfigurationAdded(config, time.time())
        case _:
            if options.values:
                raise InputError(f"finish takes no value, but {options.values[0]} was given.")
            return FinishRequested(time.time())


def _trial_to_stop(values: list[str], history: History) -> int:
    from spaces.errors import InputError

    running = [str(trial.number) for trial in history.unfinished]
    if len(values) != 1 or values[0] not in running:
        given = " ".join(values) or "nothing"
        raise InputError(
            f"stop is given {given}, but needs the number of one running trial: {', '.join(running) or 'none runs'}."
        )
    return int(values[0])


def _configuration(values: list[str], space: Space, history: History) -> Hyperparameters:
    from search.policy.budget import is_tried
    from spaces.errors import InputError
    from spaces.loader import configuration_from

    config = configuration_from(values, space)
    if is_tried(config, history):
        same = [str(trial.number) for trial in history.counting if trial.config == config]
        raise InputError(f"Trial {same[0] if same else 'to come'} has this configuration already. Change a value.")
    return config


def _answer(request: Event, space: Space, history: History) -> str:
    """What the search has done."""
    from search.analysis.columns import compact
    from search.experiment.events import ConfigurationAdded, TrialEnded
    from spaces.counted import counted

    if isinstance(request, TrialEnded):
        trial = history.trials[request.trial]
        if trial.end and trial.end.reason == BY_USER:
            done = counted(trial.n_epochs, "epoch")
            return f"Trial {trial.number} is stopped after {done}; its worker is free when it ends the present one."
        return f"Trial {trial.number} ended before: {trial.status}."
    if isinstance(request, ConfigurationAdded):
        return f"Added, and tried next: {compact(space.searched_values(request.config))}"
    running = counted(len(history.unfinished), "trial")
    return f"No more trials are started: {running} still running, then replicates."


if __name__ == "__main__":
    sys.exit(main())
