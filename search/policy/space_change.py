"""Changes of the space of a search: which are allowed, and which trials they exclude. Pure functions."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from search.experiment.history import History, Trial
from search.experiment.space_file import differences, with_old_values
from spaces.errors import InputError
from spaces.schema import Space
from trainable.metric import METRICS

# Keys that may always be changed: locations, and limits of the search.
_FREE = (
    "search.trials",
    "search.epoch_budget",
    "search.time_budget",
    "search.audit_fraction",
    "search.memory",
    "dataset.root",
    "dataset.download",
    "confirm",
    "resources",
    "track",
    "try_first",
)
# Keys that all results depend on: trials before and after such a change cannot be compared.
_NEVER = (
    "dataset",
    *(f"training.{key}" for key in ("max_epochs", "precision", "class_weights", "pooling")),
    "search.seed",
)


def must_be_allowed(before: Mapping[str, Any], after: Space, allowed: bool, folder: Path) -> bool:
    """Check the changes of a space.

    Args:
        before: the space that the search journaled.
        after: the new space.
        allowed: whether the user allows changes that exclude trials.
        folder: folder of the experiment, for the message.

    Returns:
        Whether any value was changed.

    Raises:
        InputError: a change is not allowed; has one line for each.
    """
    changes = list(differences(with_old_values(before), after.as_dict()))
    checked = [(key, line) for key, line in changes if not _is_of(key, _FREE)]
    lines = [line for key, line in checked if _is_of(key, _NEVER)]
    advice = "its trials would not compare with later ones. Change that back, or start a new search."
    if not lines and not allowed:
        lines = [line for _, line in checked]
        advice = (
            "the space was changed since the search began. Change that back, or give --allow-changed-space: trials "
            "that lie in the new space count on, others are excluded."
        )
    if lines:
        raise InputError([f"{folder}: {text}" for text in (*(f"{line}." for line in lines), advice)])
    return bool(changes)


def must_have_the_metric(space: Space, history: History, folder: Path) -> None:
    """Raise InputError if earlier results lack the metric of `space`: their trials could not be ranked by it."""
    metric = METRICS[space.search.metric]
    if n_without := history.n_without(metric):
        raise InputError(
            f"{folder}: `search.metric` is {metric.name}, but {n_without:,} epochs of its journal were recorded by a "
            f"version that did not compute it. Choose accuracy or loss, or start a new search."
        )


def excluded(space: Space, history: History) -> list[int]:
    """Numbers of the trials whose configuration lies outside `space`."""
    return [number for number, trial in history.trials.items() if not space.contains(trial.config)]


def counting_in(space: Space, history: History) -> list[Trial]:
    """Trials that are not excluded, and lie in `space`.

    Equal to `history.counting`, unless `experiment.yaml` was edited after the search.
    """
    return [trial for trial in history.counting if space.contains(trial.config)]


def _is_of(key: str, keys: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
