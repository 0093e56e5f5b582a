"""Starts a new search, or prints its plan."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from search.analysis.plan_cost import plan_cost
from search.execution.trackers import must_be_installed
from search.experiment.events import MemoryRecalled
from search.experiment.folder import (
    create_experiment,
    experiment_of,
    load_space_or_experiment,
    must_be_a_name,
    name_is_taken,
)
from search.experiment.manifest import Data, new_manifest
from search.experiment.remote_results import RemoteExperiment
from search.policy.rungs import chance_accuracy, chance_levels
from search.processes.guarded_folder import guarded_folder
from search.session import conduct
from search.session.memory import recall
from search.session.on_end import on_end
from search.terminal.plan_text import plan_text
from spaces import Space
from spaces.command import DEFAULT_SPACE
from trainable.data.datasets import TrainingData
from trainable.locations import below

if TYPE_CHECKING:
    from search.execution.launching import SearchEnd


def start_search(request: conduct.SessionRequest, name: str | None = None) -> SearchEnd:
    """Create an experiment, run a session of it, print the result, and return why the session ended.

    Without `name`, the experiment is named by its space and the time.

    Raises:
        InputError: the request cannot be met; nothing was created.
        RunError: the search broke off; it can be resumed.
    """
    space, name, recalled = _checked(request, name)
    data = conduct.prepare_data(space)
    with on_end(request.on_end) as ended:
        with conduct.running_cluster(request, space) as (cluster, stop_signal):
            resource_plan = conduct.resource_plan_on(cluster, space, data)
            sources = recalled.sources if recalled else ()
            manifest = new_manifest(space, name, resource_plan.for_manifest, _data_facts(data), sources)
            experiment = create_experiment(request.results, name, space, manifest, recalled)
            if request.results_url:
                experiment = RemoteExperiment(request.results_url, name)
            ended.experiment = experiment
            with experiment.exclusive():
                ended.status = conduct.conduct(request, experiment, space, data, resource_plan, cluster, stop_signal)
        conduct.print_result(experiment, ended.status, request.address)
    return ended.status


def print_plan(request: conduct.SessionRequest, name: str | None = None) -> None:
    """Print what a search would do and cost (`--dry-run`).

    Raises:
        InputError: the request cannot be met.
    """
    space, _, recalled = _checked(request, name)
    with guarded_folder():  # before torch is imported, because torch creates a folder for its compiler
        from search.execution.plan import checkpoint_bytes, seconds_per_epoch

        data = conduct.prepare_data(space)
        if joined := conduct.joined_cluster(request):
            with joined as cluster:
                resource_plan = conduct.resource_plan_on(cluster, space, data)
                epoch_s = cluster.seconds_per_epoch(space, data, resource_plan)
        else:
            resource_plan = conduct.resource_plan_on(None, space, data)
            epoch_s = seconds_per_epoch(space, data, resource_plan)
        side_by_side = resource_plan.trials_side_by_side
        cost = plan_cost(space, resource_plan.trials_at_once, side_by_side, epoch_s, checkpoint_bytes(data))
        measured = [(sharing.n_trials, sharing.images_per_s) for sharing in resource_plan.measured]
        print(plan_text(space, data, resource_plan.for_manifest, resource_plan.slots, cost, measured, recalled))


def _checked(request: conduct.SessionRequest, name: str | None) -> tuple[Space, str, MemoryRecalled | None]:
    """The space of a new search, the name of its experiment, and what is taken from earlier ones."""
    given = request.space or DEFAULT_SPACE
    space = load_space_or_experiment(given, request.overrides)
    space = conduct.with_absolute_paths(space)
    name = name or f"{_name_part(space.name)}-{datetime.now():%Y%m%d-%H%M%S}"
    must_be_a_name(name)
    must_be_new(name, request.results, request.results_url)
    must_be_installed(space.track)
    space, recalled = recall(space, request.results, request.results_url, experiment_of(given))
    return space, name, recalled


def must_be_new(name: str, results: Path, results_url: str | None) -> None:
    """Raise InputError if an experiment has this name, in the folder or at the URL."""
    if (results / name).exists():
        raise name_is_taken(name, results / name, results_url or results)
    if results_url and RemoteExperiment(results_url, name).exists():
        raise name_is_taken(name, below(results_url, name), results_url)


def _data_facts(data: TrainingData) -> Data:
    return Data(
        n_train=len(data.train),
        n_validation=len(data.validation),
        class_names=list(data.decoded.class_names),
        mean=list(data.decoded.mean),
        std=list(data.decoded.std),
        content_sha256=data.decoded.content_sha256,
        chance=chance_accuracy(data.validation.labels),
        chances=chance_levels(data.validation.labels),
    )


def _name_part(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:60] or "search"
