"""The space in a journal, and its differences from another space. Pure functions."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from search.experiment.history import History
from spaces.parameters import Hyperparameters, Number

_MISSING = object()


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


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Each different key as `section.key`, with a sentence that has both values."""
    for section in {**before, **after}:
        old, new = before.get(section) or {}, after.get(section) or {}
        for name in {**old, **new}:
            if old.get(name, _MISSING) != new.get(name, _MISSING):
                key = f"{section}.{name}"
                yield key, f"`{key}` was {value_text(old, name)} and is {value_text(new, name)}"


def value_text(section: Mapping[str, Any], name: str) -> str:
    """The value of a key on one line, as in YAML; `not given` where the section does not have it."""
    if name not in section:
        return "not given"
    # YAML ends a document that is one scalar with `...`.
    text: str = yaml.safe_dump(section[name], default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()
