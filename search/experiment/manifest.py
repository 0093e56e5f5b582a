"""The manifest of an experiment: versions, device, data, sessions and uses of the test set."""

import contextlib
import json
import math
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from search.experiment.history import History
from search.experiment.state_files import (
    BACKUP_FOLDER,
    backup_of,
    first_problem,
    json_must_match,
    json_with_checksum,
)
from spaces.counted import counted
from spaces.errors import InputError
from spaces.plain_files import MIB, read_plain
from spaces.printable import warn_once
from spaces.schema import Precision, Space
from trainable.files import write_text

MAX_MANIFEST_BYTES = 16 * MIB  # a manifest with 1,000 classes and 1,000 sessions has less than 1 MiB

# fmt: off
_PACKAGES = (
    "depthwise-search", "torch", "torchvision", "albumentations", "ray", "optuna", "numpy", "pillow", "scikit-learn",
    "onnxruntime",
)
# fmt: on


class Part(BaseModel):
    """Frozen; keys of later versions are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


class Device(Part):
    """Device of the trials."""

    device: str  # `cpu` or `cuda`
    name: str
    trials_at_once: int
    precision: Precision = "fp32"  # of activations, in all trials and the retraining
    precision_reason: str = "the only one when this search began"


class Data(Part):
    """The training and validation images."""

    n_train: int
    n_validation: int
    class_names: list[str]
    mean: list[float]  # of the training images, per channel
    std: list[float]
    content_sha256: str  # of all pixels and labels
    # The highest validation accuracy of a run that only guesses (`rungs.chance_accuracy`); None in old manifests.
    chance: float | None = Field(default=None, ge=0, le=1)
    chances: dict[str, float] = {}  # of the other metrics (`rungs.chance_levels`)

    @property
    def chances_by_metric(self) -> dict[str, float]:
        """Best value of each metric that a run which only guesses reaches, as far as it is known."""
        return self.chances if self.chance is None else {"accuracy": self.chance, **self.chances}


class Seeds(Part):
    """Seeds of the experiment, and of the split into training and validation images."""

    experiment: int
    split: int


class Session(Part):
    """One run of `search.run`. All but `started_at` are None until its end, also if it is killed."""

    started_at: str
    ended_at: str | None = None
    seconds: float | None = None  # from the start of the command to the shutdown of Ray
    end: str | None = None
    overhead_share: float | None = None  # as in `WallClock`
    idle_share: float | None = None

    @field_validator("started_at")
    @classmethod
    def _must_be_a_time(cls, text: str) -> str:
        if datetime.fromisoformat(text).tzinfo is None:
            raise ValueError("it has no time zone")
        return text


class TestSetUse(Part):
    """One use of the test set."""

    __test__: ClassVar[bool] = False  # pytest: not a test class

    at: str
    trial: int
    config: dict[str, float]
    epochs: int  # of each seed
    seeds: int  # number of seeds
    reason: str | None  # the user's reason for a repeated use; None for the first
    test_accuracy_mean: float | None = None  # over seeds; None until testing is finished
    checkpoints_sha256: list[str] = []  # of each seed: identifies the models if testing is resumed


def use_of_test_set_text(opening: TestSetUse) -> str:
    """One line about a use of the test set, for messages."""
    result = "not finished" if opening.test_accuracy_mean is None else f"accuracy {opening.test_accuracy_mean:.2%}"
    reason = f", once more because: {opening.reason}" if opening.reason else ""
    return (
        f"Test set opened {opening.at} for trial {opening.trial} ({counted(opening.seeds, 'seed')}): {result}{reason}"
    )


class Manifest(Part):
    """All of `manifest.json`."""

    name: str
    space: str
    created_at: str
    state: str  # `running`, or the end of the last session
    versions: dict[str, str]  # see `versions`
    git_commit: str | None  # see `git_commit`
    device: Device
    data: Data
    seeds: Seeds
    memory: list[str] = []  # names of the earlier searches that the first trials were taken from
    sessions: list[Session] = []
    test_openings: list[TestSetUse] = []

    def with_session(self, session: Session, new: bool) -> "Manifest":
        """A copy with `session` appended (`new`), or in place of the last session."""
        before = self.sessions if new else self.sessions[:-1]
        return self.model_copy(update={"sessions": [*before, session], "state": session.end or "running"})

    def with_use_of_test_set(self, opening: TestSetUse, new: bool) -> "Manifest":
        """A copy with `opening` appended (`new`), or in place of the last use of the test set."""
        before = self.test_openings if new else self.test_openings[:-1]
        return self.model_copy(update={"test_openings": [*before, opening]})


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, then its backup, each atomically."""
    text = json_with_checksum(json.dumps(manifest.model_dump(), indent=2, allow_nan=False))
    write_text(path, text)
    backup_of(path).parent.mkdir(exist_ok=True)
    write_text(backup_of(path), text)


def read_manifest(path: Path) -> Manifest:
    """Read and check a manifest; if it is damaged, its backup is read, and the user is warned.

    Raises:
        InputError: file and backup are missing or damaged.
    """
    try:
        return _read(path)
    except InputError as error:
        try:
            copied = _read(backup_of(path))
        except InputError:
            raise error from None
        finding = error.lines[0].removesuffix(" Restore it from a copy.").removesuffix(".")
        warn_once(f"{finding}; its copy {BACKUP_FOLDER}/{path.name} is used.")
        return copied


def _read(path: Path) -> Manifest:
    try:
        content = read_plain(path, MAX_MANIFEST_BYTES)
        manifest = Manifest.model_validate_json(content)
        json_must_match(content)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except ValidationError as error:
        problem = f"is not a manifest of a search ({first_problem(error)})"
    except InputError:
        raise
    except ValueError as error:
        problem = f"is not as the search wrote it ({error})"
    else:
        return manifest
    raise InputError(f"{path}: {problem}. Restore it from a copy.")


def new_manifest(space: Space, name: str, device: Device, data: Data, memory: Sequence[str] = ()) -> Manifest:
    """The manifest of a new experiment."""
    return Manifest(
        name=name,
        space=space.name,
        created_at=timestamp(),
        state="running",
        versions=versions(),
        git_commit=git_commit(),
        device=device,
        data=data,
        seeds=Seeds(experiment=space.search.seed, split=space.dataset.split_seed),
        memory=list(memory),
    )


def seconds_used(sessions: Sequence[Session], history: History, now: float | None = None) -> float:
    """Total duration of all sessions in seconds; arguments as in `session_times`."""
    return sum((seconds for _, seconds in session_times(sessions, history, now)), 0.0)


def session_times(sessions: Sequence[Session], history: History, now: float | None = None) -> list[tuple[float, float]]:
    """Start (seconds since 1970, UTC) and duration in seconds of each session; a killed one lasts until its last event.

    `now` (seconds since 1970, UTC) is given if the last session still runs, which then counts until `now`.
    """
    starts_s = [datetime.fromisoformat(session.started_at).timestamp() for session in sessions]
    times = []
    for session, start_s, next_s in zip(sessions, starts_s, [*starts_s, math.inf][1:], strict=True):
        if session.seconds is not None:
            seconds = session.seconds
        elif now is not None and next_s == math.inf:
            seconds = max(0.0, now - start_s)
        else:
            seconds = max((at - start_s for at in history.event_times if start_s <= at < next_s), default=0.0)
        times.append((start_s, seconds))
    return times


def timestamp(at: float | None = None) -> str:
    """`at` (seconds since 1970) with microseconds, or the present time in whole seconds; in UTC, ISO 8601."""
    if at is None:
        return datetime.now(UTC).isoformat(timespec="seconds")
    # With the start rounded down, a session would include the last events of the session before.
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version(), **dict.fromkeys(_PACKAGES, "not installed")}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def git_commit() -> str | None:
    """Commit of this code, with `+changes` if files differ from it; None outside a checkout."""
    here = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            # Without locks: a git that is killed by the timeout would leave its lock in the user's checkout.
            command = ["git", "--no-optional-locks", "-C", str(here), *arguments]
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return None

    # An installed copy may lie inside the checkout of another project.
    if git("ls-files", "--error-unmatch", str(Path(__file__).relative_to(here))) is None:
        return None
    commit = git("rev-parse", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain", "--", ".") else commit
