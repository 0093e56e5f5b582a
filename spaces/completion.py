"""What the Tab key offers after a command's options. Called by argcomplete only; nothing is imported for it before.

Each completer is given what was typed so far, and gives words that begin with it.
"""

from collections.abc import Iterable
from typing import Any


def complete_spaces(prefix: str, **_: Any) -> Iterable[str]:
    """Shipped names, and paths of YAML files."""
    from argcomplete.completers import FilesCompleter

    from spaces.loader import shipped_spaces

    names = [name for name in shipped_spaces() if name.startswith(prefix)]
    return [*names, *FilesCompleter(["yaml", "yml"])(prefix)]


def complete_overrides(prefix: str, **_: Any) -> Iterable[str]:
    """`section.key=`; what comes after it is the user's."""
    from spaces.parameters import HYPERPARAMETER_NAMES
    from spaces.schema import SECTIONS

    keys = [f"{section}.{key}=" for section, model in SECTIONS.items() for key in model.model_fields]
    keys += [f"{section}.{name}=" for section in ("space", "baseline") for name in HYPERPARAMETER_NAMES]
    return [key for key in keys if key.startswith(prefix)]
