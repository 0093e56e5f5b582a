"""What it means for a search that its space was changed after it began. Pure functions."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.experiment.events import History, Replicate, Trial
from spaces.errors import InputError
from spaces.parameters import Hyperparameters, Number
from spaces.schema import Space

MOST_NUMBERS_TOLD = 10
# What says where things are and how long the search goes on, but not what it means.
_FREE = (
    "search.trials",
    "search.epoch_budget",
    "search.time_budget",
    "search.audit_fraction",
    "dataset.root",
    "dataset.download",
    "confirm",
    "resources",
    "track",
)
# What every trial's result depends on: trials on either side of such a change cannot be compared.
_NEVER = ("dataset", "training.max_epochs", "training.precision", "search.seed")


def unwritten_baseline(history: History) -> dict[str, Number]:
    """Baseline values that the journaled space does not state, by hyperparameter.

    Earlier versions wrote `baseline` only for searched hyperparameters. The others have the same value in all
    trials of such a search: that of the first trial that counts, or the default value before there is a trial.
    """
    config = next((trial.config for trial in history.counting), Hyperparameters())
    stated = stated_hyperparameters(history.space or {})
    return {name: value for name, value in config.as_dict().items() if name not in stated}


def stated_hyperparameters(content: Mapping[str, Any]) -> set[str]:
    """Names of the hyperparameters to which a space file or a journaled space gives a value or a range."""
    sections = (content.get(name) for name in ("training", "space", "baseline"))
    return {str(name) for section in sections if isinstance(section, dict) for name in section}


def journaled_space(history: History) -> dict[str, Any] | None:
    """The journaled space with all baseline values; None where the journal has no space."""
    if history.space is None:
        return None
    return {**history.space, "baseline": {**(history.space.get("baseline") or {}), **unwritten_baseline(history)}}


def must_be_allowed(before: Mapping[str, Any], after: Space, allowed: bool, folder: Path) -> bool:
    """Check what was changed in a space.

    Args:
        before: as the search journaled it.
        after: as it is to be from now on.
        allowed: whether the user allows changes that set trials aside.
        folder: of the experiment, for the message.

    Returns:
        Whether anything was changed.

    Raises:
        InputError: a change is not allowed; shows each.
    """
    before = {**before, "search": {**_ALWAYS_WAS, **(before.get("search") or {})}}
    changes = list(differences(before, after.as_dict()))
    never = [line for key, line in changes if _is_of(key, _NEVER) and not _is_of(key, _FREE)]
    if never:
        raise InputError(
            [
                *(f"{folder}: {line}." for line in never),
                f"{folder}: its trials would not compare with later ones. Change that back, or start a new search.",
            ]
        )
    askable = [line for key, line in changes if not _is_of(key, _FREE)]
    if askable and not allowed:
        raise InputError(
            [
                *(f"{folder}: {line}." for line in askable),
                f"{folder}: the space was changed since the search began. Change that back, or give "
                f"--allow-changed-space: trials that lie in the new space count on, others are excluded.",
            ]
        )
    return bool(changes)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Each key that differs, as `section.key`, with a line that shows both values."""
    for section in {**before, **after}:
        old, new = before.get(section) or {}, after.get(section) or {}
        for name in {**old, **new}:
            if old.get(name, _MISSING) != new.get(name, _MISSING):
                key = f"{section}.{name}"
                yield key, f"`{key}` was {value_text(old, name)} and is {value_text(new, name)}"


def excluded(space: Space, history: History) -> list[int]:
    """Numbers of the trials whose configuration could not have come from `space`."""
    return [number for number, trial in history.trials.items() if not contains(space, trial.config)]


def excluded_text(outside: Sequence[int], history: History) -> str | None:
    """One line that says which of the trials `outside` counted until now; None where none did."""
    newly = [number for number in outside if not history.trials[number].excluded]
    if not newly:
        return None
    numbers = ", ".join(map(str, newly[:MOST_NUMBERS_TOLD])) + (", …" if len(newly) > MOST_NUMBERS_TOLD else "")
    return (
        f"{len(newly)} of {len(history.counting)} trials lie outside the space as it is now and count no more "
        f"({numbers})."
    )


def contains(space: Space, config: Hyperparameters) -> bool:
    """Whether a configuration could have come from `space`."""
    values = config.as_dict()
    searched = space.searched
    return all(
        searched[name].contains(value) if name in searched else value == getattr(space.baseline, name)
        for name, value in values.items()
    )


def counting_in(space: Space, history: History) -> list[Trial]:
    """Trials that count, and could have come from `space`.

    They are `history.counting` unless `experiment.yaml` was edited since the search ran, or is not its own.
    """
    return [trial for trial in history.counting if contains(space, trial.config)]


def unfinished_outside(space: Space, history: History) -> list[Trial]:
    """Trials that would have gone on, but are excluded."""
    return [trial for trial in history.unfinished if not contains(space, trial.config)]


def unfinished_replicates_outside(space: Space, history: History) -> list[Replicate]:
    """Replicates that would have gone on, of trials that are excluded."""
    return [run for run in history.unfinished_replicates if not contains(space, history.trials[run.trial].config)]


_MISSING = object()
# What a search did whose journal is from before these could be chosen.
_ALWAYS_WAS = {"asha": "stop", "sampler": "tpe", "startup_trials": 10}


def value_text(section: Mapping[str, Any], name: str) -> str:
    """The value of a key on one line, as in YAML; `not given` where the section does not have it."""
    if name not in section:
        return "not given"
    # A scalar alone is followed by YAML's end of a document.
    text: str = yaml.safe_dump(section[name], default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _is_of(key: str, keys: Iterable[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)
