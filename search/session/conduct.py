"""What every session does: prepare images, start Ray, run and show the trials, print the result."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from search.analysis.cost import expected_search
from search.analysis.ranking import lead_sentence, leader, rank, winner
from search.execution.cluster import Cluster, cluster_for, torch_imported_beside
from search.execution.joined_cluster import JoinedCluster
from search.execution.stop_signal import StopSignal
from search.execution.trackers import trackers
from search.experiment.command_lines import command_on, resume_line
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Device, seconds_used
from search.terminal.display import SearchConsole, SearchDisplay, print_while_read
from search.terminal.plan_text import epochs_text, limits_text, memory_text
from search.terminal.tables import as_table
from spaces import Space
from spaces.errors import InputError, expanded
from spaces.printable import printable, shell_word, warn
from trainable.compute import choose_device
from trainable.data.datasets import TrainingData, prepare_training_data
from trainable.data.sources import problem_of_test_folder

if TYPE_CHECKING:
    from search.execution.launching import SearchEnd
    from search.execution.plan import ResourcePlan


@dataclass(frozen=True, kw_only=True)
class SessionRequest:
    """What the caller asks of a session, new or resumed.

    Attributes:
        started_s: time of the command, by the monotonic clock; the time budget counts from it.
        results: folder of the experiments on this machine.
        results_url: URL that `results` is a copy of; None without one.
        space: name or path of a space or experiment; None for the default, or for the experiment's own.
        overrides: `SECTION.KEY=VALUE`; a later one wins.
        address: of a Ray cluster, `auto` or `HOST:PORT`; None starts Ray on this machine.
        quiet: print the result only.
        plain: print one line per event, in a terminal too.
        on_end: shell command that runs after the session; see `on_end`.
    """

    started_s: float
    results: Path
    results_url: str | None = None
    space: str | None = None
    overrides: tuple[str, ...] = ()
    address: str | None = None
    quiet: bool = False
    plain: bool = False
    on_end: str | None = None


def with_absolute_paths(space: Space) -> Space:
    """Make paths absolute: workers start in other folders, and a search may be resumed from any folder."""
    if space.dataset.root is not None:
        root = os.path.realpath(expanded(space.dataset.root))  # unlike Path.resolve, it accepts circular links
        space = replace(space, dataset=space.dataset.model_copy(update={"root": root}))
    if space.track.mlflow and space.track.mlflow.tracking_uri.startswith("sqlite:///"):
        path = expanded(space.track.mlflow.tracking_uri.removeprefix("sqlite:///")).absolute()
        mlflow = space.track.mlflow.model_copy(update={"tracking_uri": f"sqlite:///{path}"})
        space = replace(space, track=space.track.model_copy(update={"mlflow": mlflow}))
    memory = tuple(os.path.realpath(expanded(name)) if os.sep in name else name for name in space.search.memory)
    return replace(space, search=space.search.model_copy(update={"memory": memory}))


def prepare_data(space: Space) -> TrainingData:
    """Decode the images, unless they are cached, and warn of a test folder that retraining would refuse."""
    data = prepare_training_data(space.dataset, show_progress=sys.stderr.isatty())
    if problem := problem_of_test_folder(space.dataset):
        warn(problem)
    return data


def time_left_s(experiment: Experiment, space: Space) -> float | None:
    """Seconds of the time budget that earlier sessions left; None without a time budget.

    Raises:
        InputError: no time is left.
    """
    if space.search.time_budget_s is None:
        return None
    used_s = seconds_used(experiment.manifest.sessions, experiment.history())
    left_s = space.search.time_budget_s - used_s
    if left_s <= 0:
        raise InputError(
            f"`search.time_budget` is {space.search.time_budget}, and {used_s:.0f} s are used. "
            f"Resume with a longer one: --time-budget TIME, counted from the search's start."
        )
    return left_s


@contextlib.contextmanager
def running_cluster(
    request: SessionRequest, space: Space, is_needed: bool = True
) -> Iterator[tuple[Cluster | None, StopSignal]]:
    """Start Ray, or join the cluster at `request.address`, and listen for Ctrl-C and `kill`.

    Yields:
        The cluster, None if no trial is left to train, and the signal that ends the session.

    Raises:
        InputError: the space asks for CUDA on this machine, which has none.
    """
    if not is_needed:
        with StopSignal() as stop_signal:
            yield None, stop_signal
        return
    if request.address is None and space.resources.device == "cuda":
        choose_device("cuda")
    needed: Cluster = joined_cluster(request) or cluster_for(space, keeps_credentials=request.results_url is not None)
    with StopSignal(needed.what_is_gone) as stop_signal, torch_imported_beside(), needed as cluster:
        stop_signal.listen()  # again, because Ray's C++ code replaces the handler of SIGTERM
        yield cluster, stop_signal


def joined_cluster(request: SessionRequest) -> JoinedCluster | None:
    """The cluster at `request.address`, not joined yet; None without an address."""
    shared_results = None if request.results_url else request.results
    return None if request.address is None else JoinedCluster(request.address, shared_results)


def resource_plan_on(
    cluster: Cluster | None, space: Space, data: TrainingData, began: Device | None = None
) -> ResourcePlan:
    """Plan where trials run: on the nodes of a joined cluster, else on this machine; see `plan_resources`."""
    from search.execution.plan import plan_resources, plan_resources_on

    if isinstance(cluster, JoinedCluster):
        return plan_resources_on(cluster.nodes, space, began)
    return plan_resources(space, data, began)


def conduct(
    request: SessionRequest,
    experiment: Experiment,
    space: Space,
    data: TrainingData,
    resource_plan: ResourcePlan,
    cluster: Cluster | None,
    stop_signal: StopSignal,
) -> SearchEnd:
    """Run and show the trials that are left; arguments as in `SearchSession`."""
    from search.execution.launching import SearchSession
    from search.session.observers import SessionObserver

    console = SearchConsole(highlight=False, markup=False)
    left_s = time_left_s(experiment, space)
    history = experiment.history()
    if not request.quiet:
        print_while_read(console, _first_line(experiment, space, resource_plan, history))
        if history.recalled and not history.trials:
            print_while_read(console, f"memory: {memory_text(len(history.recalled), experiment.manifest.memory)}")
    display = SearchDisplay(
        space,
        console,
        resource_plan.trials_at_once,
        quiet=request.quiet,
        name=experiment.name,
        epoch_images=data.train.epoch_images,
        started_s=request.started_s,
        plain=request.plain,
        history=history,
        time_left_s=left_s,
    )
    with display:
        told = trackers(space.track, experiment, display.note)
        observer = SessionObserver(display, told, experiment, space)
        return SearchSession(
            experiment, space, data, resource_plan, cluster, stop_signal, request.started_s, left_s, observer
        ).run()


def _first_line(experiment: Experiment, space: Space, resource_plan: ResourcePlan, history: History) -> str:
    n_before = len(history.counting)
    expected = expected_search(space)
    begun_before = f", {n_before} begun before" if n_before else ""
    in_all = f", {epochs_text(space, expected)}" if expected else ""
    return (
        f"{printable(experiment.location)}: {limits_text(space, expected)}{begun_before} "
        f"on {resource_plan.description} in {resource_plan.compute.precision} ({resource_plan.precision_reason}), "
        f"{resource_plan.trials_at_once} at once{in_all}"
    )


def print_result(experiment: Experiment, end: SearchEnd, address: str | None) -> None:
    """Print the best five trials, the winner, and the commands that come next."""
    history = experiment.history()
    ranked = rank(history)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if ranked:
        print(f"\n{as_table(ranked[:5], tuple(experiment.space.searched), width, live=False)}\n")
    print(lead_sentence(history, ranked))
    if end != "finished":
        reason = "Interrupted" if end == "interrupted" else "The time budget is used up"
        more = "" if end == "interrupted" else " --time-budget TIME"
        more += f" --address {shell_word(address)}" if address else ""
        print(f"{reason}; nothing is lost. Resume with: {resume_line(experiment, more)}")
    if leader(ranked):
        print(f"Next: {command_on('leaderboard', experiment)}")
        print(f"      {command_on('retrain' if winner(ranked) else 'diagnose', experiment)}")
