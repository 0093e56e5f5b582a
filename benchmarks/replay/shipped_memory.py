"""Makes the memory that new searches start with: `python -m benchmarks.replay.shipped_memory`.

`search/session/memory.json` holds the final accuracies of the stored tables of the project's network, and the forecasts
of the published search.
"""

import argparse
import json
import sys
from typing import Any

from benchmarks.replay import published
from benchmarks.replay.tables import read_table
from search.experiment.folder import Experiment
from search.policy.coordinates import from_unit
from search.policy.curve_model import from_z, to_z
from search.policy.memory import EarlierSearch, earlier_search
from search.session.memory import SHIPPED_FILE
from spaces.command import CommandParser, run_command
from spaces.parameters import HYPERPARAMETER_NAMES, Number
from trainable.files import write_text

# Names in the memory of stored tables.
TABLES = {"digits": "digits", "cifar10": "cifar10-small"}


def main(arguments: list[str] | None = None) -> int:
    parser = CommandParser(
        prog="python -m benchmarks.replay.shipped_memory",
        description=f"Write {SHIPPED_FILE.name} from the stored learning curves and the published search.",
        epilog="example: python -m benchmarks.replay.shipped_memory",
    )
    return run_command(parser, _run, arguments)


def _run(options: argparse.Namespace) -> int:
    experiment = Experiment(published.FOLDER)
    search = earlier_search("cifar10", experiment.history())
    assert search
    made = [as_json(table_search(table, name)) for table, name in TABLES.items()]
    made.append(as_json(search) | {"created_at": experiment.manifest.created_at})
    lines = ",\n".join(json.dumps(content) for content in made)
    write_text(SHIPPED_FILE, f"[\n{lines}\n]\n")
    return 0


def table_search(table: str, name: str) -> EarlierSearch:
    """A stored table as an earlier search with all its configurations trained to the end."""
    known = read_table(table)
    searched = known.space.searched
    configs = [known.space.complete(from_unit(searched, place)) for place in known.unit]
    return EarlierSearch(name, known.epochs, frozenset(searched), configs, to_z(known.curves[:, -1]))


def as_json(search: EarlierSearch) -> dict[str, Any]:
    """An earlier search as an entry of the file."""
    searched = [name for name in HYPERPARAMETER_NAMES if name in search.searched]
    accuracies = from_z(search.scores)
    return {
        "name": search.name,
        "max_epochs": search.max_epochs,
        "searched": searched,
        "configs": [[_rounded(getattr(config, name)) for name in searched] for config in search.configs],
        "accuracies": [round(float(accuracy), 4) for accuracy in accuracies],
        "created_at": None,
    }


def _rounded(value: Number) -> Number:
    return value if isinstance(value, int) else float(f"{value:.4g}")


if __name__ == "__main__":
    sys.exit(main())
