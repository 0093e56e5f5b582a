"""Trains one configuration: model, data, augmentation, and `FitEvaluate`. Imports nothing of `search`."""

import sys
from importlib.util import find_spec
from pathlib import Path


def must_be_ours(package: str, file: str) -> None:
    """End the program with one line and exit code 2 if `package` lacks `file`: it is another project's.

    The names `spaces` and `trainable` exist on PyPI too.
    """
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if any((folder / file).is_file() for folder in folders):
        return
    where = folders[0] if folders else "nowhere"
    print(
        f"`{package}` is another project's package ({where}), but must be depthwise-search's. Uninstall that package, "
        f"or install depthwise-search in a virtual environment of its own.",
        file=sys.stderr,
    )
    sys.exit(2)


must_be_ours("spaces", "schema.py")
