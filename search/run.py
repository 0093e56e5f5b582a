"""Start a search, or resume one: `python -m search.run`."""

# PYTHON_ARGCOMPLETE_OK

import argparse
import sys
import time
from typing import Any

from search.cli.options import add_results_argument, chosen_experiment, complete_experiments, results_of
from spaces.command import EXIT_INTERRUPTED, CommandParser, add_space_arguments, completed, run_command
from spaces.errors import InputError

# Options that abbreviate a `--set`.
_SHORTCUTS = {
    "trials": "search.trials",
    "epoch_budget": "search.epoch_budget",
    "time_budget": "search.time_budget",
    "seed": "search.seed",
    "device": "resources.device",
}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m search.run",
        description="Search a space: train its baseline and many other configurations, and stop weak ones early.",
        epilog="example: python -m search.run cifar10 --set dataset.train_limit=4000 --time-budget 30m --name first",
    )
    add_space_arguments(parser)
    parser.add_argument("--name", help="name of the experiment (default: the space's name and the time)")
    add_results_argument(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="configurations to try, the baseline among them")
    parser.add_argument(
        "--epoch-budget",
        type=int,
        metavar="N",
        help="start trials until N epochs are trained, instead of a number of trials (unless --trials is given too)",
    )
    parser.add_argument("--time-budget", metavar="TIME", help="stop after this long, such as 30m, 1h30m or 90s")
    parser.add_argument("--seed", type=int, help="seed of proposals, weights, order, dropout and augmentation")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="run the trials on a Ray cluster: `auto` on a machine of it, or HOST:PORT of its head (default: here)",
    )
    resume = parser.add_argument("--resume", metavar="NAME", help="resume an experiment where it stopped")
    completed(resume, complete_experiments)
    parser.add_argument("--add-trials", type=int, metavar="N", help="with --resume: raise search.trials by N")
    parser.add_argument("--add-epochs", type=int, metavar="N", help="with --resume: raise search.epoch_budget by N")
    parser.add_argument(
        "--allow-changed-space",
        action="store_true",
        help="with --resume: accept a change of the searched space by SPACE, --set or experiment.yaml",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it will cost, and stop")
    parser.add_argument(
        "--on-end",
        metavar="COMMAND",
        help="a shell command to run afterwards, also after a failure, with SEARCH_NAME, SEARCH_FOLDER, "
        "SEARCH_STATUS, SEARCH_BEST and SEARCH_INTERVAL in its environment",
    )
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.add_argument("--plain", action="store_true", help="print one line for each event, in a terminal too")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    started_s = time.monotonic()
    results, url = results_of(options)
    common = {name: getattr(options, name) for name in ("space", "address", "quiet", "plain", "on_end")}
    common |= {"started_s": started_s, "results": results, "results_url": url}
    end = (_start if options.resume is None else _resume)(options, common)
    return EXIT_INTERRUPTED if end == "interrupted" else 0


def _start(options: argparse.Namespace, common: dict[str, Any]) -> str:
    if options.add_trials is not None or options.add_epochs is not None or options.allow_changed_space:
        raise InputError(
            "--add-trials, --add-epochs and --allow-changed-space change a search that there is: give --resume NAME."
        )
    from search.session.conduct import SessionRequest
    from search.session.start import print_plan, start_search

    request = SessionRequest(overrides=(*_shortcut_overrides(options), *options.set), **common)
    if options.dry_run:
        print_plan(request, options.name)
        return "finished"
    return start_search(request, options.name)


def _resume(options: argparse.Namespace, common: dict[str, Any]) -> str:
    refused = ("name", "trials", "epoch_budget", "seed", "device")
    given = [option.replace("_", "-") for option in refused if getattr(options, option) is not None]
    if given or options.dry_run:
        raise InputError(
            f"--resume uses the experiment's own settings: it does not take --{(given or ['dry-run'])[0]}. "
            f"More trials: --add-trials N; more epochs: --add-epochs N; other settings: --set SECTION.KEY=VALUE."
        )
    for option, number in (("trials", options.add_trials), ("epochs", options.add_epochs)):
        if number is not None and number < 1:
            raise InputError(f"--add-{option} is {number}, but must be at least 1.")
    from search.session.resume import ResumeRequest, resume_search

    request = ResumeRequest(
        experiment=chosen_experiment(options, options.resume),
        overrides=tuple(options.set),
        add_trials=options.add_trials,
        add_epochs=options.add_epochs,
        time_budget=options.time_budget,
        allow_changed_space=options.allow_changed_space,
        **common,
    )
    return resume_search(request)


def _shortcut_overrides(options: argparse.Namespace) -> list[str]:
    values = [(key, getattr(options, name)) for name, key in _SHORTCUTS.items()]
    given = [f"{key}={value}" for key, value in values if value is not None]
    # The file's number of trials would mostly be used up before a given number of epochs.
    return given if options.epoch_budget is None or options.trials is not None else ["search.trials=null", *given]


if __name__ == "__main__":
    sys.exit(main())
