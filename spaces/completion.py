"""Completions for the Tab key, called by argcomplete only.

Each completer takes the typed prefix and returns words that begin with it.
"""

from collections.abc import Iterable
from typing import Any


def complete_spaces(prefix: str, **_: Any) -> Iterable[str]:
    """Names of shipped spaces, and paths of YAML files."""
    from argcomplete.completers import FilesCompleter

    from spaces.loader import shipped_spaces

    names = [name for name in shipped_spaces() if name.startswith(prefix)]
    return [*names, *FilesCompleter(["yaml", "yml"])(prefix)]


def complete_overrides(prefix: str, **_: Any) -> Iterable[str]:
    """All `section.key=`, without values."""
    from spaces.parameters import HYPERPARAMETER_NAMES
    from spaces.schema import SECTIONS

    keys = [f"{section}.{key}=" for section, model in SECTIONS.items() for key in model.model_fields]
    keys += [f"{section}.{name}=" for section in ("space", "baseline") for name in HYPERPARAMETER_NAMES]
    return [key for key in keys if key.startswith(prefix)]
