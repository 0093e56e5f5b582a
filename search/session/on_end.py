"""Runs the user's command after a session (`search.run --on-end COMMAND`)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.analysis.ranking import rank, winner
from search.experiment.folder import Experiment
from spaces.printable import shortened, warn

if TYPE_CHECKING:
    from search.execution.launching import SearchEnd


@dataclass
class Ended:
    """What has ended: set `experiment` as soon as it exists, and `status` at the end of the search."""

    experiment: Experiment | None = None
    status: SearchEnd = "failed"


@contextmanager
def on_end(command: str | None) -> Iterator[Ended]:
    """Run a shell command after the block, also after a failure, unless the block set no experiment.

    The command gets SEARCH_NAME, SEARCH_FOLDER, SEARCH_STATUS, SEARCH_BEST (the winner's value of the metric, by its
    replicates, or else its forecast) and SEARCH_INTERVAL (half of its 95 % interval) in its environment; the last two
    are empty where they are not known.
    """
    ended = Ended()
    try:
        yield ended
    finally:
        if command is not None and ended.experiment is not None:
            facts = _facts(ended.experiment, ended.status)
            code = subprocess.run(command, shell=True, env=os.environ | facts, check=False).returncode
            if code:
                warn(f"--on-end: `{shortened(command)}` ended with exit code {code}.")


def _facts(experiment: Experiment, status: SearchEnd) -> dict[str, str]:
    history = experiment.history()
    best = winner(rank(history))
    score, half_width = None, None
    if best:
        score, half_width = best.score, best.replicate_half_width if best.replicates else best.forecast_half_width
    return {
        "SEARCH_NAME": experiment.name,
        "SEARCH_FOLDER": str(experiment.folder),
        "SEARCH_STATUS": status,
        "SEARCH_BEST": "" if score is None else f"{history.metric.value(score):.6g}",
        "SEARCH_INTERVAL": "" if half_width is None else f"{half_width:.6g}",
    }
