"""Resumes a search, also with more trials, another time budget or a changed space."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from search.execution.trackers import must_be_installed
from search.experiment.command_lines import command_line
from search.experiment.events import ReplicateEnded, SpaceSet, TrialEnded
from search.experiment.folder import Experiment, load_space_or_experiment
from search.experiment.history import History
from search.experiment.space_file import journaled_space, with_old_values
from search.policy.space_change import excluded, must_be_allowed, must_have_the_metric
from search.policy.state import is_done
from search.session import conduct
from search.session.on_end import on_end
from spaces import Space
from spaces.errors import InputError
from spaces.printable import warn_once
from spaces.schema import duration_s

if TYPE_CHECKING:
    from search.execution.launching import SearchEnd

MOST_NUMBERS_TOLD = 10  # numbers of excluded trials in the warning


@dataclass(frozen=True, kw_only=True)
class ResumeRequest(conduct.SessionRequest):
    """The next session of an existing experiment.

    Attributes:
        add_trials, add_epochs: raise this limit of the search by a number; None leaves it.
        time_budget: of the whole search, such as `1h30m`, for this session; None for the experiment's own.
    """

    experiment: Experiment
    add_trials: int | None = None
    add_epochs: int | None = None
    time_budget: str | None = None
    allow_changed_space: bool = False


def resume_search(request: ResumeRequest) -> SearchEnd:
    """Search from where the experiment's journal ends, print the result, and return why the session ended.

    Raises:
        InputError: the request cannot be met; the experiment is unchanged.
        RunError: the search broke off; it can be resumed.
    """
    experiment = request.experiment
    experiment.must_be_plain()
    with on_end(request.on_end) as ended:
        with experiment.exclusive():
            ended.experiment = experiment
            experiment.mend_space()
            ended.status = _resume(request)
        conduct.print_result(experiment, ended.status, request.address)
    return ended.status


def _resume(request: ResumeRequest) -> SearchEnd:
    experiment = request.experiment
    history = experiment.history()
    changed = changed_space(request, history)
    # A longer time budget holds for this session and does not change the experiment.
    space = with_time_budget(changed, request.time_budget)
    must_be_installed(space.track)
    data = conduct.prepare_data(space)
    if experiment.manifest.data.content_sha256 != data.decoded.content_sha256:
        raise InputError(
            f"{experiment.folder}: was begun on other images than `dataset.root` has now, so that its trials would "
            f"not compare. Restore the images, or start a new search: "
            f"{command_line('run', experiment.folder, results=experiment.results)}"
        )
    adopt_space(experiment, changed, history)
    conduct.time_left_s(experiment, space)  # raises before Ray is started
    began = experiment.manifest.device
    done = is_done(experiment.history(), space)
    with conduct.running_cluster(request, space, is_needed=not done) as (cluster, stop_signal):
        resource_plan = conduct.resource_plan_on(cluster, space, data, began)
        return conduct.conduct(request, experiment, space, data, resource_plan, cluster, stop_signal)


def changed_space(request: ResumeRequest, history: History) -> Space:
    """The experiment's space with the changes of the request; checked, not written.

    Raises:
        InputError: the change is wrong or not allowed, or the journal does not hold the space.
    """
    experiment, overrides = request.experiment, list(request.overrides)
    for key, option in (("trials", "add_trials"), ("epoch_budget", "add_epochs")):
        if (more := getattr(request, option)) is not None:
            overrides.append(f"search.{key}={_present_limit(experiment, key, option) + more}")
    if request.space is None:
        space = experiment.space_with(overrides)
    else:
        space = load_space_or_experiment(request.space, overrides)
    space = conduct.with_absolute_paths(space)
    before = journaled_space(history)
    if before is None:
        raise InputError(
            f"{experiment.folder}: its journal does not say what was searched. Start a new search: "
            f"{command_line('run', experiment.folder, results=experiment.results)}"
        )
    must_be_allowed(before, space, request.allow_changed_space, experiment.folder)
    must_have_the_metric(space, history, experiment.folder)
    return space


def _present_limit(experiment: Experiment, key: str, option: str) -> int:
    limit: int | None = getattr(experiment.space.search, key)
    if limit is None:
        flag = f"--{option.replace('_', '-')}"
        raise InputError(f"{experiment.folder}: has no `search.{key}` that {flag} could raise. Leave the option out.")
    return limit


def adopt_space(experiment: Experiment, space: Space, history: History) -> None:
    """Write `space` into the experiment, unless it is the journaled one, and end the trials outside it."""
    if history.space and with_old_values(history.space) == space.as_dict():
        return
    outside = excluded(space, history)
    if newly := [number for number in outside if not history.trials[number].excluded]:
        numbers = ", ".join(map(str, newly[:MOST_NUMBERS_TOLD])) + (", …" if len(newly) > MOST_NUMBERS_TOLD else "")
        warn_once(
            f"{experiment.folder}: {len(newly)} of {len(history.counting)} trials lie outside the space as it is now "
            f"and count no more ({numbers})."
        )
    experiment.write_space(space)
    journal = experiment.journal()
    for trial in history.unfinished:
        if trial.number in outside:
            journal.append(TrialEnded(trial.number, "stopped", "the space was changed", time.time()))
    for replicate in history.unfinished_replicates:
        if replicate.trial in outside:
            journal.append(ReplicateEnded(replicate.number, "failed", "the space was changed", time.time()))
    journal.append(SpaceSet(space.as_dict(), outside, time.time()))


def with_time_budget(space: Space, time_budget: str | None) -> Space:
    """The space with another time budget; None leaves it.

    Raises:
        InputError: the time budget is no duration.
    """
    if time_budget is None:
        return space
    try:
        duration_s(time_budget)
    except ValueError as error:
        raise InputError(f"--time-budget is {time_budget}, but must be {error}.") from None
    return replace(space, search=space.search.model_copy(update={"time_budget": time_budget}))
