"""Keys that space files had in earlier versions.

A renamed key is still read under its old name. A removed key or value is refused in a user's file. In an experiment's
file, a removed key is ignored if it has its old default, and another value replaces a removed one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class RemovedKey(NamedTuple):
    """Old default of a removed key, which experiments have written out, and the reason of the removal."""

    default: Any
    reason: str


REMOVED_KEYS: Mapping[str, RemovedKey] = {
    "resources.cuda_graph": RemovedKey(False, "it was never measured"),
    "search.startup": RemovedKey("random", "the first trials are always proposed at random"),
}


# Removed values of keys, and what experiments that have them go on with.
REMOVED_VALUES: Mapping[str, Mapping[Any, Any]] = {"search.asha": {"promote": "stop"}}

RENAMED_KEYS: Mapping[str, str] = {"search.explore": "search.audit_fraction"}


def removed_sentence(key: str) -> str:
    """Message for a user who gives the removed `key`."""
    return f"`{key}` was removed: {REMOVED_KEYS[key].reason}. Take the line out."


def with_current_keys(content: Mapping[str, Any], defaults_only: bool = False) -> dict[str, Any]:
    """A space as a dict, with renamed keys under their current names and without removed keys.

    Args:
        content: sections by name; a value that is not a section stays as it is.
        defaults_only: keep removed keys with another value than the old default.
    """
    kept = with_present_names(content)
    for key, removed in REMOVED_KEYS.items():
        section, _, name = key.partition(".")
        values = kept.get(section)
        if isinstance(values, dict) and name in values and not (defaults_only and values[name] != removed.default):
            del values[name]
    for key, instead in REMOVED_VALUES.items():
        section, _, name = key.partition(".")
        values = kept.get(section)
        if isinstance(values, dict) and isinstance(values.get(name), str) and values[name] in instead:
            values[name] = instead[values[name]]
    return kept


def with_present_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a space as a dict, with renamed keys under their current names, in the same order."""
    kept = {name: dict(section) if isinstance(section, dict) else section for name, section in content.items()}
    for old, new in RENAMED_KEYS.items():
        section, _, name = old.partition(".")
        present = new.rpartition(".")[2]
        values = kept.get(section)
        if isinstance(values, dict) and name in values and present not in values:
            kept[section] = {present if key == name else key: value for key, value in values.items()}
    return kept


def renamed_sentence(key: str) -> str:
    """Message for a user who gives the renamed `key`."""
    return f"`{key}` is called `{RENAMED_KEYS[key]}` now; it is read as that."
