"""`experiment.yaml`, the space of an experiment, and the space in the journal, which replaces a damaged file."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from search.experiment.history import History
from search.experiment.state_files import yaml_matches
from spaces.errors import InputError
from spaces.loader import load_space, space_from_text
from spaces.parameters import HYPERPARAMETER_NAMES, Hyperparameters, Number
from spaces.plain_files import read_plain
from spaces.printable import warn_once
from spaces.removed import with_current_keys
from spaces.schema import Space
from spaces.yaml_lines import MAX_BYTES, parse

# Values of keys that earlier versions did not have, and so did not write.
ALWAYS_WAS: Mapping[str, Mapping[str, Any]] = {
    "search": {"asha": "stop", "sampler": "tpe", "startup_trials": 10, "metric": "accuracy", "memory": []},
    "training": {"class_weights": "none", "pooling": "max"},
}
_MISSING = object()


def read_space(path: Path, read_journal: Callable[[], History], overrides: Sequence[str]) -> Space:
    """The resolved space; from the journal if `experiment.yaml`, at `path`, is missing or not valid.

    The user is warned if it is not the one that the search wrote. `read_journal` is called only where it is needed.

    Raises:
        InputError: the journal has no space either, or an override is not valid.
    """
    try:
        if not path.exists():
            raise InputError(f"{path}: is missing.")
        written = load_space(str(path), unwritten_values(path, read_journal))
    except InputError as error:
        journal = read_journal()
        if journal.space is None:
            raise
        warn_once(f"{error.lines[0].removesuffix('.')}; the space as the search journaled it is used.")
        return space_of_journal(journal, path.resolve().parent.name, overrides)
    if not yaml_matches(path.read_bytes()):
        journaled = with_old_values(read_journal().space or {})
        changes = [line for _, line in differences(journaled, written.as_dict())]
        if changes:
            warn_once(
                f"{path}: was changed since the search wrote it ({'; '.join(changes)}). It is used as it is; "
                f"if that is no edit of yours, remove the file, and the space as the search journaled it is used."
            )
    return load_space(str(path), [*unwritten_values(path, read_journal), *overrides])


def unwritten_values(path: Path, read_journal: Callable[[], History]) -> list[str]:
    """`SECTION.KEY=VALUE` for each value that an earlier version did not write to `experiment.yaml`.

    Raises:
        InputError: the file is not a regular file, or not YAML.
    """
    content = parse(read_plain(path, MAX_BYTES).decode(), path.name).content
    later = [
        f"{section}.{name}={_value_text(values, name)}"
        for section, values in ALWAYS_WAS.items()
        for name in values
        if isinstance(content.get(section), dict) and name not in content[section]
    ]
    stated = _stated(content)
    if stated >= set(HYPERPARAMETER_NAMES):
        return later  # files of this version state all of them
    values = _unwritten_baseline(read_journal())
    missing = {name: value for name, value in values.items() if name not in stated}
    for name, value in missing.items():
        if value != getattr(Hyperparameters(), name):
            warn_once(f"{path}: does not state `baseline.{name}`; the value of its trials, {value}, is used.")
    return [*later, *(f"baseline.{name}={_value_text(missing, name)}" for name in missing)]


def space_of_journal(history: History, name: str, overrides: Sequence[str] = ()) -> Space:
    """The space that a history set last, which must have one, as that of the experiment `name`.

    Raises:
        InputError: this version cannot read it, or an override is not valid.
    """
    text = yaml.safe_dump(with_current_keys(with_old_values(journaled_space(history) or {})), sort_keys=False)
    return space_from_text(text, "the journal's space", name, overrides)


def with_old_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """A journaled space with the values of keys that its version did not have."""
    old = {
        name: {**values, **section}
        for name, values in ALWAYS_WAS.items()
        if isinstance(section := content.get(name), dict)
    }
    return {**content, **old}


def journaled_space(history: History) -> dict[str, Any] | None:
    """The journaled space with all baseline values; None where the journal has no space."""
    if history.space is None:
        return None
    return {**history.space, "baseline": {**(history.space.get("baseline") or {}), **_unwritten_baseline(history)}}


def _unwritten_baseline(history: History) -> dict[str, Number]:
    """Baseline values that the journaled space does not state, by hyperparameter.

    Earlier versions wrote `baseline` only for searched hyperparameters. The others have the same value in all
    trials of such a search: that of the first trial that counts, or the default value before there is a trial.
    """
    config = next((trial.config for trial in history.counting), Hyperparameters())
    stated = _stated(history.space or {})
    return {name: value for name, value in config.as_dict().items() if name not in stated}


def _stated(content: Mapping[str, Any]) -> set[str]:
    """Names of the hyperparameters to which a space file or a journaled space gives a value or a range."""
    sections = (content.get(name) for name in ("training", "space", "baseline"))
    return {str(name) for section in sections if isinstance(section, dict) for name in section}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Each different key as `section.key`, with a sentence that has both values."""
    for section in {**before, **after}:
        old, new = (_keys_of(content.get(section)) for content in (before, after))
        for name in {**old, **new}:
            if old.get(name, _MISSING) != new.get(name, _MISSING):
                key = f"{section}.{name}"
                yield key, f"`{key}` was {_value_text(old, name)} and is {_value_text(new, name)}"


def _keys_of(part: Any) -> dict[Any, Any]:
    """A section by its keys, a list by its numbers."""
    return dict(enumerate(part)) if isinstance(part, list) else part or {}


def _value_text(section: Mapping[Any, Any], name: Any) -> str:
    """The value of a key on one line, as in YAML."""
    if name not in section:
        return "not given"
    # YAML ends a document that is one scalar with `...`.
    text: str = yaml.safe_dump(section[name], default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()
