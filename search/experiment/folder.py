"""An experiment's folder: where its files are, who may write to it, and what its manifest says."""

import errno
import fcntl
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from search.experiment.checksums import yaml_matches, yaml_with_checksum
from search.experiment.command_lines import command_line, resume_line
from search.experiment.events import SpaceSet
from search.experiment.history import History
from search.experiment.journal import Journal, JournalFollower, read_history, set_damaged_aside
from search.experiment.journaled_space import (
    differences,
    journaled_space,
    stated_hyperparameters,
    unwritten_baseline,
    value_text,
)
from search.experiment.manifest import MAX_MANIFEST_BYTES, Manifest, read_manifest, write_manifest
from spaces.errors import InputError, expanded
from spaces.loader import dump_space, find_space, load_space, space_from_text
from spaces.parameters import HYPERPARAMETER_NAMES, Hyperparameters
from spaces.plain_files import must_hold_plain_files, open_plain, read_plain
from spaces.printable import printable
from spaces.removed import with_current_keys
from spaces.schema import Space
from spaces.yaml_lines import MAX_BYTES, parse
from trainable.files import sync, write_text

MAX_LOCK_BYTES = 64
# C's `struct flock`: kind, whence, start, length, process id; length 0 is the whole file.
_FLOCK = "hhqqi4x"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# Never read back; the last of them hold pickles.
RAY_SNAPSHOTS = ("experiment_state-*.json", "search_gen_state-*.json", "*.pkl")


class Experiment:
    """One folder under `results/`. Reading needs neither Ray nor torch, and executes nothing from it.

    A damaged journal, manifest or space is replaced by its copy, and the user is told, once; a folder is mended
    on the disk by whoever holds it for writing.

    Args:
        folder: exists.
        tell: called with a line for the user; None prints it to standard error.
    """

    def __init__(self, folder: Path | str, tell: Callable[[str], None] | None = None) -> None:
        self.folder = expanded(folder) if isinstance(folder, str) else folder
        self._tell = tell or _tell_user
        self._warned: set[str] = set()

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def ray_folder(self) -> Path:
        return self.folder / "ray"

    @property
    def location(self) -> str:
        """Where it is, for people."""
        return str(self.folder)

    @property
    def results(self) -> str:
        """The folder that it lies in by its name, or the URL: what `--results` takes."""
        # A path may end in `..`, or in a link of another name.
        plain = self.folder if self.folder.name == self.name else self.folder.resolve()
        return str(plain.parent)

    @property
    def ray_storage(self) -> str:
        """Where workers keep checkpoints: an absolute path, the same on every machine, or a URL."""
        return str(self.ray_folder.resolve())

    @property
    def final_folder(self) -> Path:
        return self.folder / "final"

    @property
    def space(self) -> Space:
        """The resolved space; where the file is missing or not valid, as the search journaled it.

        Raises:
            InputError: neither is there.
        """
        return self.space_with(())

    def space_with(self, overrides: Sequence[str]) -> Space:
        """The resolved space, with `section.key=value` options laid over it.

        Raises:
            InputError: as for `space`, or an option is not valid.
        """
        path = self.folder / "experiment.yaml"
        try:
            if not path.exists():
                raise InputError(f"{path}: is missing.")
            load_space(str(path))
        except InputError as error:
            journaled = journaled_space(self.history())
            if journaled is None:
                raise
            self.warn_once(f"{error.lines[0].removesuffix('.')}; the space as the search journaled it is used.")
            text = str(yaml.safe_dump(with_current_keys(journaled), sort_keys=False))
            return space_from_text(text, "the journal's space", self.name, overrides)
        self._tell_of_changed_space(path)
        return load_space(str(path), [*self.unwritten_values(), *overrides])

    def unwritten_values(self) -> list[str]:
        """`baseline.NAME=VALUE` for each value that an earlier version did not write to `experiment.yaml`.

        Raises:
            InputError: the file is not a plain one, or not YAML.
        """
        path = self.folder / "experiment.yaml"
        stated = stated_hyperparameters(parse(read_plain(path, MAX_BYTES).decode(), path.name).content)
        if stated >= set(HYPERPARAMETER_NAMES):
            return []  # as every file of this version, whose journal need not be read
        values = unwritten_baseline(self.history())
        missing = {name: value for name, value in values.items() if name not in stated}
        for name, value in missing.items():
            if value != getattr(Hyperparameters(), name):
                self.warn_once(f"{path}: does not state `baseline.{name}`; the value of its trials, {value}, is used.")
        return [f"baseline.{name}={value_text(missing, name)}" for name in missing]

    def _tell_of_changed_space(self, path: Path) -> None:
        """Tell the user if `experiment.yaml` is not as it was written: an edit and a flipped bit look the same."""
        if yaml_matches(path.read_bytes()):
            return
        journaled = self.history().space
        changes = [line for _, line in differences(journaled or {}, load_space(str(path)).as_dict())]
        if changes:
            self.warn_once(
                f"{path}: was changed since the search wrote it ({'; '.join(changes)}). It is used as it is; "
                f"if that is no edit of yours, remove the file, and the space as the search journaled it is used."
            )

    @property
    def manifest(self) -> Manifest:
        """Versions, device, data, sessions and openings of the test set.

        Raises:
            InputError: the file is missing or damaged.
        """
        return read_manifest(self.folder / "manifest.json", self.warn_once)

    def newest_checkpoint(self, name: str, n_epochs_known: int) -> Path | str | None:
        """The intact checkpoint of a trial or run with the most epochs, but no more than the journal knows; or None."""
        from trainable.checkpoint import checkpoint_epoch  # needs torch, which those who only read do without

        best: tuple[int, Path] | None = None
        for folder in _checkpoints(self.ray_folder.resolve(), name):
            epoch = checkpoint_epoch(folder)
            if epoch is not None and epoch <= n_epochs_known and (best is None or epoch > best[0]):
                best = (epoch, folder)
        return best[1] if best else None

    def drop_checkpoints(self, name: str, but_newest: int = 0) -> None:
        """Remove the checkpoints of a trial or run but the `but_newest` newest ones.

        All of them when it has ended: it is never gone on with, and a winner is retrained.

        Args:
            name: of its folder, such as `trial_0007`.
            but_newest: how many to keep.
        """
        found = sorted(_checkpoints(self.ray_folder, name), key=checkpoint_order)
        for folder in found[: max(0, len(found) - but_newest)]:
            if self._holds(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def drop_ray_snapshots(self) -> None:
        """Remove Ray's own state of its sessions, which is never read back and holds pickles; its logs stay."""
        for pattern in RAY_SNAPSHOTS:
            for path in self.ray_folder.glob(f"session_*/{pattern}"):
                if self._holds(path.parent):
                    path.unlink(missing_ok=True)

    def must_be_plain(self) -> None:
        """Raise InputError if the folder holds links or other things that a search does not make.

        Whoever writes or removes anything here asks first: through a link it would happen somewhere else.
        """
        must_hold_plain_files(self.folder)

    def history(self) -> History:
        """All trials so far; safe to call while the search runs."""
        return read_history(self.folder / "journal.jsonl", self.warn_once)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def bring_up_to_date(self) -> None:
        """Fetch what another machine has written; nothing to do where the folder itself is what is written to."""

    def follower(self) -> JournalFollower:
        """Reads `history` again and again, while the search runs, at the cost of what is new."""
        return JournalFollower(self.folder / "journal.jsonl", self.warn_once)

    def journal(self) -> Journal:
        """For the process that holds the folder; mends the file first."""
        return Journal(self.folder / "journal.jsonl", self.warn_once)

    def write_manifest(self, manifest: Manifest) -> None:
        write_manifest(self.folder / "manifest.json", manifest)

    def publish_manifest(self, manifest: Manifest) -> None:
        """Write it, and come back when whoever else may go on with the experiment can read it."""
        self.write_manifest(manifest)

    def write_space(self, space: Space) -> None:
        write_text(self.folder / "experiment.yaml", yaml_with_checksum(dump_space(space)))

    def mend_space(self) -> None:
        """Write `experiment.yaml` anew where it cannot be used; for the process that holds the folder."""
        path = self.folder / "experiment.yaml"
        try:
            load_space(str(path))
        except InputError:
            space = self.space
            if path.exists():
                set_damaged_aside(path)
            self.write_space(space)

    def warn_once(self, line: str) -> None:
        """Tell the user something of this folder, but not twice."""
        if line not in self._warned:
            self._warned.add(line)
            self._tell(printable(line))

    def is_live(self) -> bool:
        """Whether a process is searching in this folder now."""
        lock = self.folder / ".lock"
        if not os.path.lexists(lock):
            return False
        with open_plain(lock) as file:
            # Asks without taking: a reader that took the lock, even for a moment, would be in the way of a writer.
            answer = fcntl.fcntl(file, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0))
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)

    def must_be_free(self) -> None:
        """Raise InputError, naming the process, if one is searching in this folder now."""
        if self.is_live():
            pid = read_plain(self.folder / ".lock", MAX_LOCK_BYTES).strip()
            holder = pid.decode() if pid.isdigit() else "unknown"
            raise InputError(f"{self.folder}: is in use by process {holder}. Wait until it ends, or stop it first.")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder for writing; the lock goes with the process, however that ends.

        Raises:
            InputError: another process holds it.
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
        # Commands that write refuse links before they begin; what is removed must be ours whoever asks for it.
        return folder.resolve().is_relative_to(self.folder.resolve())


def create_experiment(results: Path, name: str, space: Space, manifest: Manifest) -> Experiment:
    """Make the folder of a new experiment, whole or not at all.

    Raises:
        InputError: the name is taken or not usable.
    """
    must_be_a_name(name)
    folder = results / name
    taken = InputError(
        f"--name is {name}, but {folder} exists. Choose another name, or go on with it: "
        f"{resume_line(Experiment(folder))}"
    )
    if folder.exists():
        raise taken
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=results, ignore_cleanup_errors=True) as parent:
        made = Experiment(Path(parent) / name)
        made.folder.mkdir()
        made.write_space(space)
        made.write_manifest(manifest)
        made.journal().append(SpaceSet(space.as_dict(), [], time.time()))
        try:
            made.folder.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise taken from None  # another search was faster
        sync(results)
    return Experiment(folder)


def open_experiment(given: str | None, results: Path) -> Experiment:
    """Find an experiment by its path or its name under `results`; None is the newest.

    Raises:
        InputError: there is none; names those that there are.
    """
    if given is None:
        return _newest(results)
    candidates = [expanded(given)] if os.sep in given else [results / given, Path(given)]
    for folder in candidates:
        if is_experiment(folder):
            return Experiment(folder)
    names = ", ".join(experiment.name for experiment in list_experiments(results)[:10]) or "none yet"
    raise InputError(f"`{given}` is not an experiment: {results}/ has {names}. Give a name or a path to its folder.")


def load_space_or_experiment(space: str, overrides: Sequence[str]) -> Space:
    """As `load_space`; the space of an experiment gets the baseline values that only its journal holds.

    Raises:
        InputError: as for `load_space`.
    """
    path = find_space(space)
    if path.name == "experiment.yaml" and (path.parent / "journal.jsonl").is_file():
        overrides = [*Experiment(path.parent).unwritten_values(), *overrides]
    return load_space(space, overrides)


def list_experiments(results: Path) -> list[Experiment]:
    """All experiments under `results`, the newest first."""
    if not results.is_dir():
        return []
    folders = [path for path in results.iterdir() if not path.name.startswith(".") and is_experiment(path)]
    return [Experiment(folder) for folder in sorted(folders, key=_started, reverse=True)]


def is_a_name(name: str) -> bool:
    """Whether `name` can be a folder's name anywhere."""
    return _NAME.fullmatch(name) is not None


def must_be_a_name(name: str) -> None:
    """Raise InputError unless `name` can be a folder's name anywhere."""
    if not is_a_name(name):
        raise InputError(
            f"--name is {name!a}, but must be 1 to 100 letters, digits, dots, dashes or underscores, "
            f"and start with a letter or digit."
        )


def _tell_user(line: str) -> None:
    # Standard error as it is then: while a screen is shown, it goes elsewhere.
    print(line, file=sys.stderr)


def is_experiment(folder: Path) -> bool:
    # Any of the two: the other may be what was lost.
    return any((folder / name).is_file() for name in ("experiment.yaml", "journal.jsonl"))


def checkpoint_order(folder: Path) -> tuple[list[int], list[int], str]:
    """Sorts the folders of a trial's checkpoints, `…/session_N/trial_…/checkpoint_…`, by age."""
    # `session_3`, or `session_3_2` where a session needed a second round; `trial_0007_2` likewise.
    return (_numbers(folder.parts[-3]), _numbers(folder.parts[-2]), folder.name)


def owner_of(folder: str) -> str:
    """The trial or run that a folder of checkpoints belongs to: `trial_0007` for `trial_0007_2`."""
    return "_".join(folder.split("_")[:2])


def _checkpoints(ray_folder: Path, name: str) -> Iterator[Path]:
    for folder in ray_folder.glob(f"session_*/{name}*/checkpoint_*"):
        if owner_of(folder.parts[-2]) == name:
            yield folder


def _numbers(name: str) -> list[int]:
    return [int(number) if number.isdecimal() else 0 for number in name.split("_")[1:]]


def _newest(results: Path) -> Experiment:
    experiments = list_experiments(results)
    if not experiments:
        raise InputError(f"{results}/ holds no experiment. Start one with: {command_line('run', results=results)}")
    return experiments[0]


def _started(folder: Path) -> tuple[str, float]:
    try:
        content = read_plain(folder / "manifest.json", MAX_MANIFEST_BYTES)
        created = str(json.loads(content).get("created_at", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        created = ""
    return (created, folder.stat().st_mtime)
