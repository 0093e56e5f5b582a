"""Reads an experiment's files after a fault, each as its users read it."""

import contextlib
import csv
import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optuna.trial import FrozenTrial

from benchmarks.faults import invariants
from benchmarks.faults.invariants import Trained, events_of
from search import leaderboard
from search.experiment.events import TrialStarted
from search.experiment.folder import Experiment
from search.experiment.history import History
from search.experiment.manifest import Session, seconds_used
from search.policy.study import STUDY_NAME, Proposer
from spaces.errors import RunError
from trainable.checkpoint import checkpoint_epoch

Kind = Literal["driver alone", "driver and workers", "raylet", "gcs_server", "worker only"]
DRIVER_KINDS: tuple[Kind, ...] = ("driver alone", "driver and workers")
# Ray's own processes; without one of them, the driver must end by itself.
SERVICE_KINDS: tuple[Kind, ...] = ("raylet", "gcs_server")
ALL_KINDS: tuple[Kind, ...] = (*DRIVER_KINDS, *SERVICE_KINDS, "worker only")
CHECKPOINTS_FILE = "checkpoints.json"


@dataclass(slots=True)
class Launch:
    """One process of a search.

    Attributes:
        started_at, ended_at: seconds since 1970 (UTC); `ended_at` is 0 while it runs.
        before, after: the journal at its start and at its end.
        killed: how it was ended; None if it ended by itself.
        n_workers_killed: number of workers of it that were killed.
        trained: epochs that it trained, by Ray's logs.
        sessions, used_s: sessions and used time of the experiment after it; set by `file_problems`.
    """

    started_at: float
    before: bytes
    after: bytes = b""
    ended_at: float = 0.0
    killed: Kind | None = None
    n_workers_killed: int = 0
    trained: Trained = field(default_factory=dict)
    sessions: Sequence[Session] = ()
    used_s: float = 0.0


def copy_files(folder: Path, copy: Path) -> None:
    """Copy an experiment without Ray's folder, of which only the epochs of the checkpoints are noted."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("ray", ".lock"))
    (copy / CHECKPOINTS_FILE).write_text(json.dumps(newest_checkpoints(folder)))


def newest_checkpoints(folder: Path) -> dict[int, int]:
    """Epoch of the newest intact checkpoint of each trial that has one."""
    newest: dict[int, int] = {}
    for path in folder.glob("ray/session_*/trial_*/checkpoint_*"):
        trial = int(path.parent.name.split("_")[1])  # `trial_0007`, or `trial_0007_2` after the loss of its worker
        newest[trial] = max(newest.get(trial, 0), checkpoint_epoch(path) or 0)
    return {trial: epoch for trial, epoch in newest.items() if epoch}


def copied_checkpoints(copy: Path) -> dict[int, int]:
    """The result of `newest_checkpoints` that `copy_files` noted."""
    return {int(trial): epoch for trial, epoch in json.loads((copy / CHECKPOINTS_FILE).read_bytes()).items()}


def study_in(path: Path) -> list[FrozenTrial] | None:
    """The trials that Optuna reads in a `study.db`; None without the file."""
    if not path.exists():
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        return optuna.load_study(study_name=STUDY_NAME, storage=storage).get_trials()
    finally:
        storage.engine.dispose()


def table_in(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a `trials.csv` as `leaderboard_problems` takes them; None without the file."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        return [
            {
                "rank": int(row["rank"]),
                "trial": int(row["trial"]),
                "status": row["status"],
                "epochs": int(row["epochs"]),
                "validation_accuracy": float(row["validation_accuracy"]) if row["validation_accuracy"] else None,
            }
            for row in csv.DictReader(file)
        ]


def leaderboard_of(folder: Path) -> list[dict[str, Any]]:
    """The rows that `search.leaderboard --format json` prints.

    Raises:
        RunError: the command failed.
    """
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = leaderboard.main([str(folder.resolve()), "--format", "json"])
    if code != 0:
        raise RunError(f"search.leaderboard ended with code {code}; its error is above.")
    return list(json.loads(output.getvalue())["trials"])


def proposal_problems(folder: Path) -> list[str]:
    """Each trial is what the sampler proposes from the events before it, so the study was resumed unchanged."""
    space, history, problems = Experiment(folder).space, History(), []
    for event in events_of((folder / "journal.jsonl").read_bytes()):
        if isinstance(event, TrialStarted):
            proposed = Proposer(space, history).propose(event.trial, event.config if event.baseline else None)
            if proposed != event.suggested:
                problems.append(f"trial {event.trial} is not what the sampler proposes from the events before it")
        history.apply(event)
    return problems


def file_problems(copy: Path, launches: Sequence[Launch]) -> list[str]:
    """All problems of the files that the last launch left, of which `copy` is a copy.

    Raises:
        InputError: a file is damaged.
    """
    launch, experiment = launches[-1], Experiment(copy)
    last = launches[-2] if len(launches) > 1 else Launch(0.0, b"")
    history, manifest, events = experiment.history(), experiment.manifest, events_of(launch.after)
    before, finished = History(events_of(launch.before)), launch.killed is None
    launch.sessions, launch.used_s = manifest.sessions, seconds_used(manifest.sessions, history)
    times = [(each.started_at, each.ended_at) for each in launches]
    study, table = study_in(copy / "study.db"), table_in(copy / "trials.csv")
    problems = [
        *invariants.prefix_problems(launch.before, launch.after),
        *invariants.history_problems(events, experiment.space, manifest.data.chance, finished),
        *([] if finished else invariants.checkpoint_problems(history, copied_checkpoints(copy))),
        *invariants.training_problems(before, events[len(before.events) :], launch.trained, launch.n_workers_killed),
        *invariants.session_problems(last.sessions, launch.sessions),
        *invariants.time_problems(launch.used_s, last.used_s, times, history),
        *invariants.leaderboard_problems(leaderboard_of(copy), history, current=True),
        *([] if study is None else invariants.study_problems(study, history, current=finished)),
        *([] if table is None else invariants.leaderboard_problems(table, history, current=finished)),
    ]
    if finished and (study is None or table is None):
        problems.append("study.db or trials.csv is missing")
    expected = "finished" if finished else "interrupted"
    if (finished or launch.killed in SERVICE_KINDS) and manifest.state != expected:
        problems.append(f"the manifest's state is {manifest.state}, but must be {expected}")
    return problems


def read_or_empty(path: Path) -> bytes:
    """A file's content; empty without the file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
