"""Launch a search, or go on with one: `python -m search.run`."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from search.cli.options import add_results_argument, chosen_experiment, complete_experiments
from search.execution.stop_signal import StopSignal
from search.experiment.command_lines import command_line, command_on, resume_line
from spaces.command import (
    DEFAULT_SPACE,
    EXIT_INTERRUPTED,
    CommandParser,
    add_space_arguments,
    completed,
    run_command,
)
from spaces.errors import InputError, expanded
from spaces.printable import printable, shell_word, warn

if TYPE_CHECKING:
    from search.execution.cluster import LocalCluster
    from search.execution.joined_cluster import JoinedCluster
    from search.execution.launching import SearchEnd
    from search.execution.plan import ResourcePlan
    from search.experiment.folder import Experiment
    from search.experiment.history import History
    from search.experiment.manifest import Data, Device
    from spaces import Space
    from trainable.data.datasets import TrainingData

# Options that are short for a `--set`.
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
    parser.add_argument("--name", help="of the experiment (default: the space's name and the time)")
    add_results_argument(parser)
    parser.add_argument("--trials", type=int, metavar="N", help="configurations to try, the baseline among them")
    parser.add_argument(
        "--epoch-budget",
        type=int,
        metavar="N",
        help="start trials until N epochs are trained, instead of a number of trials (unless --trials is given too)",
    )
    parser.add_argument("--time-budget", metavar="TIME", help="stop after this long, such as 30m, 1h30m or 90s")
    parser.add_argument("--seed", type=int, help="of proposals, weights, order, dropout and augmentation")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--address",
        metavar="ADDRESS",
        help="run the trials on a Ray cluster: `auto` on a machine of it, or HOST:PORT of its head (default: here)",
    )
    resume = parser.add_argument("--resume", metavar="NAME", help="go on with an experiment where it was")
    completed(resume, complete_experiments)
    parser.add_argument("--add-trials", type=int, metavar="N", help="with --resume: so many more than it had")
    parser.add_argument("--add-epochs", type=int, metavar="N", help="with --resume: so much more epoch budget")
    parser.add_argument(
        "--allow-changed-space",
        action="store_true",
        help="with --resume: go on although SPACE, --set or experiment.yaml changed what is searched",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it will cost, and stop")
    parser.add_argument("--quiet", action="store_true", help="print the result only")
    parser.add_argument("--plain", action="store_true", help="in a terminal too, print a line an event, as into a pipe")
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    options.started_s = time.monotonic()
    if options.resume is not None:
        return _resume(options)
    if options.add_trials is not None or options.add_epochs is not None or options.allow_changed_space:
        raise InputError(
            "--add-trials, --add-epochs and --allow-changed-space change a search that there is: give --resume NAME."
        )
    return _launch(options)


def _launch(options: argparse.Namespace) -> int:
    from search.experiment.folder import create_experiment, load_space_or_experiment, must_be_a_name
    from search.experiment.manifest import new_manifest

    overrides = [*_shortcut_overrides(options), *options.set]
    space = _with_absolute_paths(load_space_or_experiment(options.space or DEFAULT_SPACE, overrides))
    name = options.name or f"{_name_part(space.name)}-{datetime.now():%Y%m%d-%H%M%S}"
    must_be_a_name(name)
    _must_be_new(options, name)
    _must_have_its_trackers(space)
    if options.dry_run:
        return _dry_run(options, space)
    data = _prepare(space)
    if options.address is None:
        _must_have_its_device(space)
    needed = _cluster(options, space)
    with StopSignal(needed.what_is_gone) as stop_signal, _torch_imported_beside(), needed as cluster:
        stop_signal.listen()  # again: Ray's C++ code takes SIGTERM for itself
        resource_plan = _place(cluster, space, data)
        manifest = new_manifest(space, name, resource_plan.for_manifest, _data_facts(data))
        experiment = create_experiment(options.results, name, space, manifest)
        if options.results_url:
            from search.experiment.remote_files import RemoteResults
            from search.experiment.remote_results import RemoteExperiment

            experiment = RemoteExperiment(RemoteResults(options.results_url), name)
        with experiment.exclusive():
            end = _search(options, experiment, space, data, resource_plan, cluster, stop_signal)
    return _finish(options, experiment, end)


def _must_be_new(options: argparse.Namespace, name: str) -> None:
    where: Path | str = options.results / name
    taken = (options.results / name).exists()
    if options.results_url and not taken:
        from search.experiment.remote_files import RemoteResults
        from trainable.locations import below

        taken = RemoteResults(options.results_url).has(name)
        where = below(options.results_url, name)
    if taken:
        raise InputError(
            f"--name is {name}, but {where} exists. Choose another name, or go on with it: "
            f"{command_line('run', '--resume', name, results=options.results_url or options.results)}"
        )


def _dry_run(options: argparse.Namespace, space: Space) -> int:
    from search.processes.guarded_folder import guarded_folder

    with guarded_folder():  # before torch is imported, which makes a folder for its compiler
        from search.execution.plan import plan_resources, plan_text, seconds_per_epoch

        data = _prepare(space)
        if options.address is None:
            resource_plan = plan_resources(space, data)
            epoch_s = seconds_per_epoch(space, data, resource_plan)
        else:
            with _joined_cluster(options) as cluster:
                resource_plan = _place(cluster, space, data)
                epoch_s = cluster.seconds_per_epoch(space, data, resource_plan)
        print(plan_text(space, data, resource_plan, epoch_s))
    return 0


def _cluster(options: argparse.Namespace, space: Space) -> LocalCluster | JoinedCluster:
    from search.execution.cluster import cluster_for

    if options.address is None:
        return cluster_for(space, keeps_credentials=options.results_url is not None)
    return _joined_cluster(options)


def _joined_cluster(options: argparse.Namespace) -> JoinedCluster:
    from search.execution.joined_cluster import JoinedCluster

    return JoinedCluster(options.address, None if options.results_url else options.results)


def _place(
    cluster: LocalCluster | JoinedCluster | None, space: Space, data: TrainingData, began: Device | None = None
) -> ResourcePlan:
    from search.execution.joined_cluster import JoinedCluster

    if isinstance(cluster, JoinedCluster):
        from search.execution.nodes import plan_resources_on

        return plan_resources_on(cluster.nodes, space, began)
    from search.execution.plan import plan_resources

    return plan_resources(space, data, began)


def _resume(options: argparse.Namespace) -> int:
    refused = ("name", "trials", "epoch_budget", "seed", "device")
    given = [option.replace("_", "-") for option in refused if getattr(options, option) is not None]
    if given or options.dry_run:
        raise InputError(
            f"--resume goes on with the experiment's own settings: it does not take --{(given or ['dry-run'])[0]}. "
            f"More trials: --add-trials N; more epochs: --add-epochs N; other settings: --set SECTION.KEY=VALUE."
        )
    for option, number in (("trials", options.add_trials), ("epochs", options.add_epochs)):
        if number is not None and number < 1:
            raise InputError(f"--add-{option} is {number}, but must be at least 1.")
    experiment = chosen_experiment(options, options.resume)
    experiment.must_be_plain()
    with experiment.exclusive():
        experiment.mend_space()
        end = _go_on(options, experiment)
    return _finish(options, experiment, end)


def _go_on(options: argparse.Namespace, experiment: Experiment) -> SearchEnd:
    from search.policy.state import is_done

    history = experiment.history()
    changed = _changed(options, experiment, history)
    # A longer time budget is for this session; it does not change the experiment.
    space = _with_time_budget(changed, options.time_budget)
    _must_have_its_trackers(space)
    data = _prepare(space)
    _must_be_the_same_images(experiment, data)
    _take_over(experiment, changed, history)
    _time_left_s(experiment, space)  # none left is said before Ray is started
    if options.address is None:
        _must_have_its_device(space)
    history = experiment.history()
    if is_done(history, space):
        with StopSignal() as stop_signal:
            resource_plan = _place(None, space, data, experiment.manifest.device)
            return _search(options, experiment, space, data, resource_plan, None, stop_signal)
    needed = _cluster(options, space)
    with StopSignal(needed.what_is_gone) as stop_signal, _torch_imported_beside(), needed as cluster:
        stop_signal.listen()  # again: Ray's C++ code takes SIGTERM for itself
        resource_plan = _place(cluster, space, data, experiment.manifest.device)
        return _search(options, experiment, space, data, resource_plan, cluster, stop_signal)


def _changed(options: argparse.Namespace, experiment: Experiment, history: History) -> Space:
    """The experiment's space with what the command changes in it; checked, but not written yet."""
    from search.experiment.folder import load_space_or_experiment
    from search.experiment.journaled_space import journaled_space
    from search.policy.space_change import must_be_allowed

    overrides = list(options.set)
    for key, more in (("trials", options.add_trials), ("epoch_budget", options.add_epochs)):
        if more is not None:
            overrides.append(f"search.{key}={_present(experiment, key) + more}")
    if options.space is None:
        space = experiment.space_with(overrides)
    else:
        space = load_space_or_experiment(options.space, overrides)
    space = _with_absolute_paths(space)
    before = journaled_space(history)
    if before is None:
        raise InputError(
            f"{experiment.folder}: its journal does not say what was searched. Start a new search: "
            f"{command_line('run', experiment.folder, results=experiment.results)}"
        )
    must_be_allowed(before, space, options.allow_changed_space, experiment.folder)
    return space


def _present(experiment: Experiment, key: str) -> int:
    """A limit of the search that is to be raised."""
    limit: int | None = getattr(experiment.space.search, key)
    if limit is None:
        option = "--add-trials" if key == "trials" else "--add-epochs"
        raise InputError(f"{experiment.folder}: has no `search.{key}` that {option} could raise. Leave the option out.")
    return limit


def _take_over(experiment: Experiment, space: Space, history: History) -> None:
    """Make `space` the experiment's, where it is not that already."""
    from search.experiment.events import ReplicateEnded, SpaceSet, TrialEnded
    from search.policy.space_change import excluded, excluded_text, unfinished_outside, unfinished_replicates_outside

    if history.space == space.as_dict():
        return
    outside = excluded(space, history)
    if text := excluded_text(outside, history):
        experiment.warn_once(f"{experiment.folder}: {text}")
    experiment.write_space(space)
    journal = experiment.journal()
    for trial in unfinished_outside(space, history):
        journal.append(TrialEnded(trial.number, "stopped", "the space was changed", time.time()))
    for run in unfinished_replicates_outside(space, history):
        journal.append(ReplicateEnded(run.number, "failed", "the space was changed", time.time()))
    journal.append(SpaceSet(space.as_dict(), outside, time.time()))


def _with_time_budget(space: Space, time_budget: str | None) -> Space:
    from dataclasses import replace

    from spaces.schema import Search

    if time_budget is None:
        return space
    try:
        search = Search.model_validate({**space.search.model_dump(), "time_budget": time_budget})
    except ValueError:
        raise InputError(f"--time-budget is {time_budget}, but must be a duration such as 30m, 1h30m or 90s.") from None
    return replace(space, search=search)


def _must_have_its_trackers(space: Space) -> None:
    """Say that one is not installed before anything is prepared or started."""
    from importlib.util import find_spec

    # Without its server and pages; whoever has all of MLflow has this too.
    wanted = {"mlflow": ("mlflow-skinny", space.track.mlflow), "wandb": ("wandb", space.track.wandb)}
    for package, (installed_as, settings) in wanted.items():
        if settings is not None and find_spec(package) is None:
            raise InputError(
                f"`track.{package}` is set, but {package} is not installed. Install it: "
                f"python -m pip install {installed_as}"
            )


def _must_have_its_device(space: Space) -> None:
    """Say that a GPU is missing before Ray is started; `auto` takes what there is."""
    if space.resources.device == "cuda":
        from trainable.devices import choose_device

        choose_device("cuda")


@contextlib.contextmanager
def _torch_imported_beside() -> Iterator[None]:
    """Import torch beside what the block does first, which is mostly to wait for Ray's processes.

    Nothing that imports Ray may be imported here: two threads would wait for each other's half.
    """
    thread = threading.Thread(target=_import_torch)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_torch() -> None:
    # What goes wrong here goes wrong again where the name is used, and is said there.
    with contextlib.suppress(ImportError):
        import torch  # noqa: F401


def _must_be_the_same_images(experiment: Experiment, data: TrainingData) -> None:
    if experiment.manifest.data.content_sha256 != data.decoded.content_sha256:
        raise InputError(
            f"{experiment.folder}: was begun on other images than `dataset.root` has now, so that its trials would "
            f"not compare. Restore the images, or start a new search: "
            f"{command_line('run', experiment.folder, results=experiment.results)}"
        )


def _search(
    options: argparse.Namespace,
    experiment: Experiment,
    space: Space,
    data: TrainingData,
    resource_plan: ResourcePlan,
    cluster: LocalCluster | JoinedCluster | None,
    stop_signal: StopSignal,
) -> SearchEnd:
    from search.analysis.expectation import expected_search
    from search.execution.launching import Launch, run_session
    from search.execution.plan import epochs_text, limits_text
    from search.terminal.display import SearchConsole, SearchDisplay, print_while_read

    console = SearchConsole(highlight=False, markup=False)
    left_s = _time_left_s(experiment, space)
    launch = Launch(experiment, space, data, resource_plan, cluster, stop_signal, options.started_s, left_s)
    history = experiment.history()
    if not options.quiet:
        n_done = len(history.counting)
        so_far = f", {n_done} begun before" if n_done else ""
        expected = expected_search(space)
        in_all = f", {epochs_text(space, expected)}" if expected else ""
        print_while_read(
            console,
            f"{printable(experiment.location)}: {limits_text(space, expected)}{so_far} "
            f"on {resource_plan.description} in {resource_plan.compute.precision} ({resource_plan.precision_reason}), "
            f"{resource_plan.trials_at_once} at once{in_all}",
        )
    display = SearchDisplay(
        space,
        console,
        resource_plan.trials_at_once,
        quiet=options.quiet,
        name=experiment.name,
        epoch_images=data.train.epoch_images,
        started_s=options.started_s,
        plain=options.plain,
        history=history,
        time_left_s=left_s,
    )
    with display:
        return run_session(launch, display)


def _finish(options: argparse.Namespace, experiment: Experiment, end: SearchEnd) -> int:
    _print_result(options, experiment, end)
    return EXIT_INTERRUPTED if end == "interrupted" else 0


def _print_result(options: argparse.Namespace, experiment: Experiment, end: SearchEnd) -> None:
    import shutil

    from search.analysis.ranking import best_completed, lead_sentence, rank, winner
    from search.terminal.tables import as_table

    history, chance = experiment.history(), experiment.manifest.data.chance
    ranked = rank(history, chance)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if ranked:
        print(f"\n{as_table(ranked[:5], tuple(experiment.space.searched), width, live=False)}\n")
    print(lead_sentence(history, ranked, chance))
    if end != "finished":
        reason = "Interrupted" if end == "interrupted" else "The time budget is used up"
        more = "" if end == "interrupted" else " --time-budget TIME"
        more += f" --address {shell_word(options.address)}" if options.address else ""
        print(f"{reason}; nothing is lost. Go on with: {resume_line(experiment, more)}")
    if best_completed(ranked):
        print(f"Next: {command_on('leaderboard', experiment)}")
        print(f"      {command_on('retrain' if winner(ranked) else 'diagnose', experiment)}")


def _time_left_s(experiment: Experiment, space: Space) -> float | None:
    if space.search.time_budget_s is None:
        return None
    from search.experiment.manifest import seconds_used

    used_s = seconds_used(experiment.manifest.sessions, experiment.history())
    left_s = space.search.time_budget_s - used_s
    if left_s <= 0:
        raise InputError(
            f"`search.time_budget` is {space.search.time_budget}, and {used_s:.0f} s are used. "
            f"Go on with a longer one: --time-budget TIME, counted from the search's start."
        )
    return left_s


def _prepare(space: Space) -> TrainingData:
    from trainable.data.datasets import prepare_training_data
    from trainable.data.sources import problem_of_test_folder

    data = prepare_training_data(space.dataset, show_progress=sys.stderr.isatty())
    problem = problem_of_test_folder(space.dataset)
    if problem:
        warn(problem)
    return data


def _data_facts(data: TrainingData) -> Data:
    from search.experiment.manifest import Data
    from search.policy.rungs import chance_accuracy

    return Data(
        n_train=len(data.train),
        n_validation=len(data.validation),
        class_names=list(data.decoded.class_names),
        mean=list(data.decoded.mean),
        std=list(data.decoded.std),
        content_sha256=data.decoded.content_sha256,
        chance=chance_accuracy(data.validation.labels),
    )


def _shortcut_overrides(options: argparse.Namespace) -> list[str]:
    values = [(key, getattr(options, name)) for name, key in _SHORTCUTS.items()]
    given = [f"{key}={value}" for key, value in values if value is not None]
    # A number of epochs is given instead of the file's number of trials, which would mostly be used up first.
    return given if options.epoch_budget is None or options.trials is not None else ["search.trials=null", *given]


def _with_absolute_paths(space: Space) -> Space:
    """Workers start in folders of their own, and an experiment may be resumed from anywhere."""
    from dataclasses import replace

    if space.dataset.root is not None:
        root = os.path.realpath(expanded(space.dataset.root))  # unlike Path.resolve, takes links that go in circles
        space = replace(space, dataset=space.dataset.model_copy(update={"root": root}))
    if space.track.mlflow and space.track.mlflow.tracking_uri.startswith("sqlite:///"):
        path = expanded(space.track.mlflow.tracking_uri.removeprefix("sqlite:///")).absolute()
        mlflow = space.track.mlflow.model_copy(update={"tracking_uri": f"sqlite:///{path}"})
        space = replace(space, track=space.track.model_copy(update={"mlflow": mlflow}))
    return space


def _name_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "search"


if __name__ == "__main__":
    sys.exit(main())
