"""An experiment's files at one moment, copied aside after a fault and read as their users read them."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.invariants import Asked, StudyTrial, events_of
from spaces.errors import RunError


@dataclass(frozen=True, slots=True)
class Files:
    """An experiment's files as they were at one moment.

    Attributes:
        journal: its bytes.
        sessions: of the manifest.
        state: of the manifest.
        checkpoints: for each trial that has any, the most epochs that an intact one holds.
        study, table: what `study.db` and `trials.csv` say; None where they are not written yet.
        leaderboard: what the command says.
        used_s: of the time budget, as the product says.
    """

    journal: bytes = b""
    sessions: Sequence[dict[str, Any]] = ()
    state: str | None = None
    checkpoints: dict[int, int] = field(default_factory=dict)
    study: list[StudyTrial] | None = None
    table: list[dict[str, Any]] | None = None
    leaderboard: list[dict[str, Any]] = field(default_factory=list)
    used_s: float = 0.0


def copy_files(folder: Path, copy: Path) -> None:
    """Copy an experiment's own files, and of Ray's the facts about checkpoints (`checkpoints.json`).

    Args:
        folder: it need not exist yet; nothing in it is touched.
        copy: made.
    """
    if not folder.exists():
        copy.mkdir(parents=True)
        return
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("ray", ".lock"))
    (copy / "checkpoints.json").write_text(json.dumps(list(newest_checkpoints(folder).items())))


def read_files(copy: Path) -> Files:
    """What `copy_files` copied."""
    manifest = json.loads((copy / "manifest.json").read_bytes())
    return Files(
        journal=read_or_empty(copy / "journal.jsonl"),
        sessions=manifest["sessions"],
        state=manifest["state"],
        checkpoints=dict(json.loads((copy / "checkpoints.json").read_bytes())),
        study=study_in(copy / "study.db"),
        table=table_in(copy / "trials.csv"),
        leaderboard=_leaderboard(copy),
        used_s=_used_s(copy),
    )


def asked_of(folder: Path) -> Asked:
    """What an experiment's space asks for."""
    from spaces import load_space

    space = load_space(str(folder))
    return Asked(
        space.search.trials,
        space.rung_epochs,
        space.search.reduction_factor,
        promotes=space.search.asha == "promote",
        epoch_budget=space.search.epoch_budget,
        chance=json.loads((folder / "manifest.json").read_bytes())["data"].get("chance"),
    )


def newest_checkpoints(folder: Path) -> dict[int, int]:
    """For each trial that has any, the most epochs that an intact checkpoint holds."""
    newest: dict[int, int] = {}
    for path in folder.glob("ray/session_*/trial_*/checkpoint_*"):
        # `trial_0007`, or `trial_0007_2` where it was given out for the second time.
        trial, epoch = int(path.parent.name.split("_")[1]), _epoch_of(path)
        if epoch is not None:
            newest[trial] = max(newest.get(trial, 0), epoch)
    return newest


def proposal_problems(folder: Path) -> list[str]:
    """Each trial is what the sampler proposes from the lines before its own: the study came back as it was."""
    from search.experiment.events import TrialStarted, event_from_dict
    from search.experiment.history import History
    from search.policy.study import Proposer
    from spaces import load_space

    space, history = load_space(str(folder)), History()
    problems = []
    for content in events_of(read_or_empty(folder / "journal.jsonl")):
        event = event_from_dict(content)
        if isinstance(event, TrialStarted):
            proposed = Proposer(space, history).propose(event.trial, event.baseline)
            if proposed != event.suggested:
                problems.append(f"trial {event.trial} is not what the study of the lines before it proposes")
        history.apply(event)
    return problems


def _epoch_of(checkpoint: Path) -> int | None:
    """Epochs that a checkpoint holds; None for a damaged or half-written one."""
    try:
        state = json.loads((checkpoint / "state.json").read_bytes())
        tensors = (checkpoint / "tensors.safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    return int(state["epoch"]) if hashlib.sha256(tensors).hexdigest() == state["tensors_sha256"] else None


def study_in(path: Path) -> list[StudyTrial] | None:
    """What Optuna reads in a `study.db`; None where there is none."""
    if not path.exists():
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        trials = optuna.load_study(study_name="search", storage=storage).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()
    return [StudyTrial(t.number, t.state.name, t.params, t.intermediate_values, t.value) for t in trials]


def table_in(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a `trials.csv`; None where there is none."""
    if not path.exists():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [
        {
            "rank": int(row["rank"]),
            "trial": int(row["trial"]),
            "status": row["status"],
            "epochs": int(row["epochs"]),
            **{name: float(row[name]) if row[name] else None for name in ("validation_accuracy", "replicate_accuracy")},
            "baseline": row["baseline"] == "true",
        }
        for row in rows
    ]


def _leaderboard(folder: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "search.leaderboard", str(folder.resolve()), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent, timeout=120, check=False)
    if done.returncode != 0:
        raise RunError(f"search.leaderboard ended with code {done.returncode}: {done.stderr[-2000:]}")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["trials"]
    return rows


def _used_s(folder: Path) -> float:
    from search.experiment.journal import read_history
    from search.experiment.manifest import read_manifest, seconds_used

    return seconds_used(read_manifest(folder / "manifest.json").sessions, read_history(folder / "journal.jsonl"))


def sessions_in(path: Path) -> list[dict[str, Any]]:
    """Of a manifest; none where there is no such file."""
    sessions: list[dict[str, Any]] = json.loads(read_or_empty(path) or b"{}").get("sessions", [])
    return sessions


def read_or_empty(path: Path) -> bytes:
    """A file's content; nothing where there is no such file."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
