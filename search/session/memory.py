"""The earlier searches that a new one starts from (`search.memory`)."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from search.experiment.events import MemoryRecalled
from search.experiment.folder import Experiment, list_experiments, open_experiment
from search.experiment.remote_results import open_remote_experiment
from search.policy.curve_model import to_z
from search.policy.memory import FEWEST_TRIALS, EarlierSearch, earlier_search, starts
from spaces.errors import InputError, first_line
from spaces.parameters import Hyperparameters
from spaces.printable import printable, warn
from spaces.schema import OWN, SHIPPED, Space

SHIPPED_FILE = Path(__file__).parent / "memory.json"
MOST_OWN = 10  # own experiments, the newest first
ENDED = ("finished", "time budget used")  # states of own experiments that are taken


def recall(
    space: Space, results: Path, url: str | None = None, repeated: Experiment | None = None
) -> tuple[Space, MemoryRecalled | None]:
    """What a new search takes from earlier ones, and its space, in which the names of the experiments replace `own`.

    Args:
        space: space of the new search.
        results: folder of the user's experiments on this machine.
        url: URL that `results` is a copy of; None without one.
        repeated: the experiment whose space is used; with the same `search.memory`, the new search takes what that one
            took.

    Raises:
        InputError: an experiment that the space names is missing, not readable, or has too few results.
    """
    if repeated and repeated.space.search.memory == space.search.memory:
        found = [event for event in repeated.history().events if isinstance(event, MemoryRecalled)]
        return space, replace(found[-1], at=time.time()) if found else None
    listed = list(space.search.memory)
    # A checkout has the published search among its results.
    published = [content["created_at"] for content in _shipped()] if SHIPPED in listed else []
    own = list[EarlierSearch]()
    if OWN in listed:
        finished = (_if_finished(experiment, published) for experiment in list_experiments(results))
        own = list(islice(filter(None, finished), MOST_OWN))
        listed[listed.index(OWN) : listed.index(OWN) + 1] = [one.name for one in own]
    known, listed = {one.name: one for one in own}, list(dict.fromkeys(listed))
    memory = list[EarlierSearch]()
    for name in listed:
        memory += shipped_searches() if name == SHIPPED else [known.get(name) or _named(name, results, url)]
    memory = [one for one in memory if one.searched & space.searched.keys()]
    resolved = replace(space, search=space.search.model_copy(update={"memory": tuple(listed)}))
    configs = starts(space, memory)
    return resolved, MemoryRecalled([one.name for one in memory], configs, time.time()) if configs else None


def shipped_searches() -> list[EarlierSearch]:
    """The searches in the package, with names such as `shipped:digits`."""
    return [_from_json(content) for content in _shipped()]


def _shipped() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(SHIPPED_FILE.read_text(encoding="utf-8"))
    return found


def _from_json(content: dict[str, Any]) -> EarlierSearch:
    names = content["searched"]
    configs = [Hyperparameters.from_mapping(dict(zip(names, row, strict=True))) for row in content["configs"]]
    scores = to_z(np.array(content["accuracies"]))
    return EarlierSearch(f"{SHIPPED}:{content['name']}", content["max_epochs"], frozenset(names), configs, scores)


def _named(name: str, results: Path, url: str | None) -> EarlierSearch:
    try:
        experiment = open_remote_experiment(url, name) if url and os.sep not in name else open_experiment(name, results)
    except InputError as error:
        raise InputError(f"`search.memory`: {line}" for line in error.lines) from None
    if found := earlier_search(name, experiment.history()):
        return found
    raise InputError(
        f"`search.memory` has {printable(name)}, of which fewer than {FEWEST_TRIALS} trials have results, or none "
        "above chance. Resume that search, or take the name out."
    )


def _if_finished(experiment: Experiment, but: Sequence[str]) -> EarlierSearch | None:
    try:
        manifest = experiment.manifest
        if manifest.state not in ENDED or manifest.created_at in but:
            return None
        return earlier_search(experiment.name, experiment.history())
    except (InputError, OSError) as error:
        warn(f"The new search learns nothing from {printable(experiment.name)}: {first_line(error)}")
        return None
