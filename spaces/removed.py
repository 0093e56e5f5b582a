"""Keys that space files had once: refused where a user writes them, left out where an experiment wrote its defaults."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RemovedKey:
    """A key that no section has any more.

    Attributes:
        default: its value where a user said nothing; experiments have it written out.
        reason: why it was removed, or what happens in its place.
    """

    default: Any
    reason: str


REMOVED_KEYS: Mapping[str, RemovedKey] = {
    "resources.cuda_graph": RemovedKey(False, "it was never measured"),
    "search.startup": RemovedKey("random", "the first trials are always proposed at random"),
}


def removed_sentence(key: str) -> str:
    """What to tell a user who gives the removed `key`."""
    return f"`{key}` was removed: {REMOVED_KEYS[key].reason}. Take the line out."


def without_removed_keys(content: Mapping[str, Any], defaults_only: bool = False) -> dict[str, Any]:
    """A space as a dict, without the keys that were removed since it was written.

    Args:
        content: sections by name; anything that is no section stays as it is.
        defaults_only: keep removed keys whose value is not the old default.
    """
    kept = {name: dict(section) if isinstance(section, dict) else section for name, section in content.items()}
    for key, removed in REMOVED_KEYS.items():
        section, _, name = key.partition(".")
        values = kept.get(section)
        if isinstance(values, dict) and name in values and not (defaults_only and values[name] != removed.default):
            del values[name]
    return kept
