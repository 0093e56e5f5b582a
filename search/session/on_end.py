"""Runs the user's command after a session (`search.run --on-end COMMAND`)."""

from __future__ import annotations

import os
import subprocess
from types import TracebackType

from search.analysis.ranking import rank, winner
from search.experiment.folder import Experiment
from spaces.printable import shortened, warn


class OnEnd:
    """Runs a shell command when its block ends, also after an exception, once there is an experiment.

    The command gets SEARCH_NAME, SEARCH_FOLDER, SEARCH_STATUS (`finished`, `interrupted`, `time budget used` or
    `failed`), SEARCH_BEST (the winner's score, 0 to 1, by its replicates where it has any) and SEARCH_INTERVAL (half
    of its 95 % interval) in its environment; the last two are empty where they are not known.

    Attributes:
        command: for `/bin/sh`; None runs nothing.
        experiment: set as soon as it exists.
        status: set when the search ends.
    """

    def __init__(self, command: str | None, experiment: Experiment | None = None) -> None:
        self.command = command
        self.experiment = experiment
        self.status = "failed"

    def __enter__(self) -> OnEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.command is None or self.experiment is None:
            return
        if isinstance(error, KeyboardInterrupt):
            self.status = "interrupted"
        code = subprocess.run(self.command, shell=True, env={**os.environ, **self._facts()}, check=False).returncode
        if code:
            warn(f"--on-end: `{shortened(self.command)}` ended with exit code {code}.")

    def _facts(self) -> dict[str, str]:
        assert self.experiment is not None
        best = winner(rank(self.experiment.history(), self.experiment.manifest.data.chance))
        half_width = best.replicate_half_width if best else None
        return {
            "SEARCH_NAME": self.experiment.name,
            "SEARCH_FOLDER": str(self.experiment.folder),
            "SEARCH_STATUS": self.status,
            "SEARCH_BEST": "" if best is None or best.score is None else f"{best.score:.6g}",
            "SEARCH_INTERVAL": "" if half_width is None else f"{half_width:.6g}",
        }
