"""The folder of an experiment: its files, and the lock for writing."""

import errno
import fcntl
import json
import os
import re
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TypeVar

from search.experiment.command_lines import command_line
from search.experiment.events import MemoryRecalled, SpaceSet
from search.experiment.history import History
from search.experiment.journal import Journal, JournalFollower, read_history
from search.experiment.manifest import MAX_MANIFEST_BYTES, Manifest, read_manifest, write_manifest
from search.experiment.space_file import read_space, unwritten_values
from search.experiment.state_files import set_damaged_aside, yaml_with_checksum
from spaces.errors import InputError, expanded
from spaces.loader import dump_space, find_space, load_space
from spaces.plain_files import must_hold_plain_files, open_plain, read_plain
from spaces.schema import OWN, SHIPPED, Space
from trainable.files import sync, write_text

MAX_LOCK_BYTES = 64
# C's `struct flock`: kind, whence, start, length, process id; length 0 means the whole file.
_FLOCK = "hhqqi4x"
_Place = TypeVar("_Place", bound=PurePath)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Never read, because some are pickles.
_RAY_SNAPSHOTS = ("experiment_state-*.json", "search_gen_state-*.json", "*.pkl")


class Experiment:
    """One folder under `results/`. Reading it needs neither Ray nor torch, and executes no content of the folder.

    If the journal, manifest or space is damaged, its backup is read, and the user is warned once. Files are repaired
    by the process that holds the lock for writing.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = expanded(folder) if isinstance(folder, str) else folder

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def ray_folder(self) -> Path:
        return self.folder / "ray"

    @property
    def location(self) -> str:
        """Path or URL of the experiment, for messages."""
        return str(self.folder)

    @property
    def results(self) -> str:
        """Value of `--results`: path or URL of the results that hold the experiment."""
        # A path may end in `..`, or in a link with another name.
        plain = self.folder if self.folder.name == self.name else self.folder.resolve()
        return str(plain.parent)

    @property
    def ray_storage(self) -> str:
        """Destination of checkpoints: an absolute path, the same on every machine, or a URL."""
        return str(self.ray_folder.resolve())

    @property
    def final_folder(self) -> Path:
        return self.folder / "final"

    @property
    def space(self) -> Space:
        """The resolved space, as `space_with` returns it without overrides."""
        return self.space_with(())

    def space_with(self, overrides: Sequence[str]) -> Space:
        """The resolved space with `overrides`; see `read_space`."""
        return read_space(self.folder / "experiment.yaml", self._journaled, overrides)

    @property
    def manifest(self) -> Manifest:
        """The manifest: versions, device, data, sessions and uses of the test set.

        Raises:
            InputError: the file is missing or damaged.
        """
        return read_manifest(self.folder / "manifest.json")

    def newest_checkpoint(self, name: str, n_epochs_known: int) -> Path | str | None:
        """Path or URL of the newest intact checkpoint of a trial or replicate; None without a usable one.

        Args:
            name: of its folder, such as `trial_0007`.
            n_epochs_known: number of epochs in the journal; checkpoints with more epochs are ignored.
        """
        epochs = ((epoch or 0, place) for place, epoch in self._checkpoint_epochs(name))
        usable = [(epoch, place) for epoch, place in epochs if 0 < epoch <= n_epochs_known]
        return max(usable, key=lambda pair: pair[0], default=(0, None))[1]

    def _checkpoint_epochs(self, name: str) -> Iterator[tuple[Path | str, int | None]]:
        """Checkpoints of a trial or replicate, newest first, with their epochs; None for damaged ones."""
        from trainable.checkpoint import checkpoint_epoch  # needs torch, which readers may not have

        for folder in reversed(_checkpoints(self.ray_folder.resolve(), name)):
            yield folder, checkpoint_epoch(folder)

    def drop_checkpoints(self, name: str, but_newest: int = 0) -> None:
        """Remove all but the newest checkpoints of a trial or replicate; `name` is of its folder, such as `trial_0007`.

        An ended trial needs none: it is never resumed, and a winner is retrained from the start.
        """
        found = _checkpoints(self.ray_folder, name)
        for folder in found[: max(0, len(found) - but_newest)]:
            if self._holds(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def drop_ray_snapshots(self) -> None:
        """Remove Ray's snapshots of its sessions, which are never read and contain pickles; its logs stay."""
        for pattern in _RAY_SNAPSHOTS:
            for path in self.ray_folder.glob(f"session_*/{pattern}"):
                if self._holds(path.parent):
                    path.unlink(missing_ok=True)

    def must_be_plain(self) -> None:
        """Raise InputError if the folder has links or other entries that a search does not make.

        Called before files are written or removed: a link would redirect that to another place.
        """
        must_hold_plain_files(self.folder)

    def history(self) -> History:
        """All trials and replicates until now, with the level of guessing; safe while a search runs."""
        history = self._journaled()
        history.chances = self.manifest.data.chances_by_metric
        return history

    def _journaled(self) -> History:
        return read_history(self.folder / "journal.jsonl")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def bring_up_to_date(self) -> None:
        """Fetch changes by other machines; does nothing unless the experiment is at a URL."""

    def follower(self) -> JournalFollower:
        """Reads the history repeatedly while a search runs; each time only the new lines."""
        return JournalFollower(self.folder / "journal.jsonl")

    def journal(self) -> Journal:
        """The journal for appending, repaired first; for the process that holds the lock."""
        return Journal(self.folder / "journal.jsonl")

    def write_manifest(self, manifest: Manifest) -> None:
        write_manifest(self.folder / "manifest.json", manifest)

    def publish_manifest(self, manifest: Manifest) -> None:
        """Write the manifest; returns when other machines can read it."""
        self.write_manifest(manifest)

    def write_space(self, space: Space) -> None:
        write_text(self.folder / "experiment.yaml", yaml_with_checksum(dump_space(space)))

    def mend_space(self) -> None:
        """Rewrite an unusable `experiment.yaml` from the journal; for the process that holds the lock."""
        path = self.folder / "experiment.yaml"
        try:
            load_space(str(path))
        except InputError:
            space = self.space
            if path.exists():
                set_damaged_aside(path)
            self.write_space(space)

    def is_live(self) -> bool:
        """Whether a search runs now."""
        return self._is_locked()

    def _is_locked(self) -> bool:
        lock = self.folder / ".lock"
        if not os.path.lexists(lock):
            return False
        with open_plain(lock) as file:
            # Queried, not taken: a reader that holds the lock for a moment would make a writer fail.
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)

    def must_be_free(self) -> None:
        """Raise InputError, with the process id, if another process holds the lock."""
        if self._is_locked():
            pid = read_plain(self.folder / ".lock", MAX_LOCK_BYTES).strip()
            holder = pid.decode() if pid.isdigit() else "unknown"
            raise InputError(f"{self.folder}: is in use by process {holder}. Wait until it ends, or stop it first.")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock for writing; it is released with the end of the process, also if that is killed.

        Raises:
            InputError: another process holds the lock.
        """
        with open_plain(self.folder / ".lock", "a+b") as file:
            try:
                fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            except (BlockingIOError, PermissionError):
                self.must_be_free()
                raise InputError(f"{self.folder}: was in use just now. Try again.") from None
            file.truncate(0)
            file.write(str(os.getpid()).encode())
            file.flush()
            yield

    def _holds(self, folder: Path) -> bool:
        # A second check beside `must_be_plain`: nothing outside the folder may be removed.
        return folder.resolve().is_relative_to(self.folder.resolve())


def create_experiment(
    results: Path, name: str, space: Space, manifest: Manifest, recalled: MemoryRecalled | None = None
) -> Experiment:
    """Create the folder of a new experiment, atomically.

    Raises:
        InputError: the name exists, or is not usable.
    """
    must_be_a_name(name)
    folder = results / name
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=results, ignore_cleanup_errors=True) as parent:
        made = Experiment(Path(parent) / name)
        made.folder.mkdir()
        made.write_space(space)
        made.write_manifest(manifest)
        journal = made.journal()
        journal.append(SpaceSet(space.as_dict(), [], time.time()))
        if recalled:
            journal.append(recalled)
        try:
            made.folder.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            raise name_is_taken(name, folder, results) from None
        sync(results)
    return Experiment(folder)


def name_is_taken(name: str, where: Path | str, results: Path | str) -> InputError:
    """The error for a new experiment whose name another one has, in a folder or at a URL."""
    again = command_line("run", "--resume", name, results=results)
    return InputError(f"--name is {name}, but {where} exists. Choose another name, or resume it: {again}")


def open_experiment(given: str | None, results: Path) -> Experiment:
    """Find an experiment by its path, or by its name under `results`; None for the newest.

    Raises:
        InputError: it does not exist; names those that exist.
    """
    if given is not None:
        for folder in [expanded(given)] if os.sep in given else [results / given, Path(given)]:
            if is_experiment(folder):
                return Experiment(folder)
    found = list_experiments(results)
    if given is None and found:
        return found[0]
    if given is None:
        raise InputError(f"{results}/ holds no experiment. Start one with: {command_line('run', results=results)}")
    names = ", ".join(experiment.name for experiment in found[:10]) or "none yet"
    raise InputError(f"`{given}` is not an experiment: {results}/ has {names}. Give a name or a path to its folder.")


def load_space_or_experiment(space: str, overrides: Sequence[str]) -> Space:
    """Like `load_space`; the space of an experiment gets the baseline values that only its journal has.

    Raises:
        InputError: as for `load_space`.
    """
    if experiment := experiment_of(space):
        overrides = [*unwritten_values(find_space(space), experiment.history), *overrides]
    return load_space(space, overrides)


def experiment_of(space: str) -> Experiment | None:
    """The experiment whose space is named by `space`; None for a space file, or without a journal.

    Raises:
        InputError: there is no such space.
    """
    path = find_space(space)
    is_journaled = path.name == "experiment.yaml" and (path.parent / "journal.jsonl").is_file()
    return Experiment(path.parent) if is_journaled else None


def list_experiments(results: Path) -> list[Experiment]:
    """All experiments under `results`, newest first."""
    if not results.is_dir():
        return []
    folders = [path for path in results.iterdir() if not path.name.startswith(".") and is_experiment(path)]
    return [Experiment(folder) for folder in sorted(folders, key=_started, reverse=True)]


def is_a_name(name: str) -> bool:
    """Whether `name` is a valid folder name on all systems."""
    return _NAME.fullmatch(name) is not None


def must_be_a_name(name: str) -> None:
    """Raise InputError unless `name` is a valid folder name on all systems, and no other word of `search.memory`."""
    if name in (SHIPPED, OWN, "none"):
        raise InputError(f"--name is {name}, which means something else in `search.memory`. Choose another name.")
    if not is_a_name(name):
        raise InputError(
            f"--name is {name!a}, but must be 1 to 100 letters, digits, dots, dashes or underscores, "
            f"and start with a letter or digit."
        )


def is_experiment(folder: Path) -> bool:
    # One of the two is enough: the other may be lost.
    return any((folder / name).is_file() for name in ("experiment.yaml", "journal.jsonl"))


def checkpoints_of(name: str, found: Iterable[_Place]) -> list[_Place]:
    """Those of the folders `…/session_N/trial_…/checkpoint_…` that are of the trial or replicate, oldest first."""

    def order(folder: PurePath) -> tuple[list[int], list[int], str]:
        return (_numbers(folder.parts[-3]), _numbers(folder.parts[-2]), folder.name)

    # `session_3_2` is the second round of session 3; `trial_0007_2` is the second dispatch of trial 7.
    own = [folder for folder in found if folder.parts[-2].split("_")[:2] == name.split("_")]
    return sorted(own, key=order)


def _checkpoints(ray_folder: Path, name: str) -> list[Path]:
    return checkpoints_of(name, ray_folder.glob(f"session_*/{name}*/checkpoint_*"))


def _numbers(name: str) -> list[int]:
    return [int(number) if number.isdecimal() else 0 for number in name.split("_")[1:]]


def _started(folder: Path) -> tuple[str, float]:
    try:
        content = read_plain(folder / "manifest.json", MAX_MANIFEST_BYTES)
        created = str(json.loads(content).get("created_at", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        created = ""
    return (created, folder.stat().st_mtime)
