"""Reads the stored learning curves in `curves/`."""

import csv
import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from search.policy.coordinates import columns_of, from_unit
from spaces import Space
from spaces.errors import InputError
from spaces.loader import space_from_text
from spaces.parameters import Choice, Number, RandInt, Searched
from spaces.removed import with_current_keys

FOLDER = Path(__file__).parent / "curves"
N_CLASSES = 10
# A run is at chance if its number of correct images differs from a tenth of all by at most this many images.
AT_CHANCE_IMAGES = 2

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Table:
    """Learning curves of configurations of one space.

    Attributes:
        name: name of the files.
        space: space of the configurations.
        unit: (N, D) configurations in the unit cube, see `in_unit_cube`.
        curves: (N, E) validation accuracies, 0 to 1; chance accuracy after divergence.
        repeats: (S, E) curves of several seeds for some configurations, including the curve in `curves`.
        n_images: number of images that accuracies were measured on.
    """

    name: str
    space: Space
    unit: Array
    curves: Array
    repeats: tuple[Array, ...]
    n_images: int

    @property
    def epochs(self) -> int:
        return int(self.curves.shape[1])

    @property
    def chance(self) -> float:
        """Accuracy of always predicting the same class, as a whole number of images."""
        return round(self.n_images / N_CLASSES) / self.n_images

    def is_at_chance(self, accuracies: Array) -> NDArray[np.bool_]:
        """Whether each of `accuracies` is that of always predicting the same class."""
        return np.abs(accuracies - 1 / N_CLASSES) * self.n_images <= AT_CHANCE_IMAGES

    def first_epochs(self, epochs: int) -> "Table":
        """The table without later epochs."""
        repeats = tuple(curves[:, :epochs] for curves in self.repeats)
        return replace(self, curves=self.curves[:, :epochs], repeats=repeats)


def stored_tables() -> list[str]:
    """Names of the stored tables."""
    return sorted(path.name.removesuffix(".csv.gz") for path in FOLDER.glob("*.csv.gz"))


def read_table(name: str) -> Table:
    """Read NAME.csv.gz and NAME.json.

    Raises:
        InputError: the table does not exist or is not complete.
    """
    if name not in stored_tables():
        raise InputError(f"`{name}` is not a table of learning curves: there are {', '.join(stored_tables())}.")
    facts = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    space = space_from_text(yaml.safe_dump(with_current_keys(facts["space"])), f"{name}.json", name)
    with gzip.open(FOLDER / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
        return table_from_text(name, space, file.read(), facts["images"]["n_validation"])


def table_from_text(name: str, space: Space, text: str, n_images: int) -> Table:
    """Parse a table from CSV text. Rows with equal hyperparameters are seeds of one configuration.

    Raises:
        InputError: the epochs of a configuration are not consecutive.
    """
    values: dict[str, tuple[Number, ...]] = {}
    accuracies: dict[str, list[float]] = {}
    for row in csv.DictReader(io.StringIO(text)):
        number = row["config"]
        values[number] = tuple(_number(parameter, row[key]) for key, parameter in space.searched.items())
        found = accuracies.setdefault(number, [])
        if row["epoch"]:
            if int(row["epoch"]) != len(found) + 1:
                raise InputError(f"{name}: configuration {number} has epoch {row['epoch']} after {len(found)}.")
            found.append(float(row["validation_accuracy"]))
    chance = round(n_images / N_CLASSES) / n_images
    epochs = max(map(len, accuracies.values()))
    seeds: dict[tuple[Number, ...], list[list[float]]] = {}
    for number, found in accuracies.items():
        seeds.setdefault(values[number], []).append(found + [chance] * (epochs - len(found)))
    unit = [in_unit_cube(space, dict(zip(space.searched, key, strict=True))) for key in seeds]
    # Undo the rounding of the stored accuracies.
    curves = np.round(np.array([found[0] for found in seeds.values()]) * n_images) / n_images
    repeats = tuple(np.array(found) for found in seeds.values() if len(found) > 1)
    return Table(name, space, np.array(unit), curves, repeats, n_images)


def in_unit_cube(space: Space, values: Mapping[str, Number]) -> Array:
    """Scale a configuration to 0 to 1: logarithmically for log-uniform parameters, one-hot for choices.

    Args:
        space: space of the configuration.
        values: values of the searched parameters.
    """
    of_each = (columns_of(one, np.array([values[name]], float)) for name, one in space.searched.items())
    return np.concatenate([column for columns in of_each for column in columns])


def random_configurations(space: Space, n: int, seed: int) -> list[dict[str, Number]]:
    """Draw `n` configurations as random search does."""
    places = np.random.default_rng(seed).random((n, len(space.searched)))
    return [from_unit(space.searched, place) for place in places]


def _number(parameter: Searched, text: str) -> Number:
    value = float(text)
    whole = isinstance(parameter, RandInt) or (isinstance(parameter, Choice) and isinstance(parameter.options[0], int))
    return int(value) if whole else value
