"""Experiments at a URL: a search works in a folder of this machine, and a thread copies its files to the URL.

One process at a time may write to an experiment at a URL. No lock enforces that: two searches that write to the same
experiment overwrite each other's files. All files are copied except those below `ray/`: Ray itself writes checkpoints
to the URL.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from search.experiment.command_lines import command_line, resume_line
from search.experiment.folder import Experiment, checkpoints_of, is_a_name, is_experiment
from search.experiment.state_files import backup_of
from spaces.errors import InputError, RunError, first_line
from spaces.printable import warn_once
from trainable.files import replacing, write_json
from trainable.locations import below, fetched, opened

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

    from search.experiment.manifest import Manifest

COPY_EVERY_S = 2.0
LAST_TRIES = 4
SILENT_S = 600.0  # a search of another machine without an event for so long is taken for dead
_SYNCED_FILE = ".synced.json"  # SHA-256 of each file when the local folder and the URL last agreed on it
_COPIED_FIRST = ("experiment.yaml", "journal.jsonl", "manifest.json")  # all other files are derived from these


def working_folder(url: str) -> Path:
    """The folder of this machine that holds the copy of the results at `url`."""
    from trainable.environment import cache_root

    return cache_root() / "results" / _digest(url.encode())[:16]


class RemoteExperiment(Experiment):
    """An experiment of the results at a URL that pyarrow knows; `folder` is this machine's copy."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__(working_folder(url) / name)
        self._url = url
        self._filesystem, results = opened(url)
        self._path = f"{results}/{name}"
        self._copying = threading.Lock()
        self._modified: dict[str, int] = {}
        self._to_drop: deque[tuple[str, int]] = deque()

    @property
    def location(self) -> str:
        return below(self._url, self.name)

    @property
    def results(self) -> str:
        return self._url

    @property
    def ray_storage(self) -> str:
        return below(self._url, self.name, "ray")

    def exists(self) -> bool:
        """Whether it is at the URL, or here because a search ended before it copied any file."""
        files = [f"{self._path}/{file}" for file in ("experiment.yaml", "journal.jsonl")]
        was_never_copied = is_experiment(self.folder) and not (self.folder / _SYNCED_FILE).exists()
        return was_never_copied or any(info.is_file for info in self._filesystem.get_file_info(files))

    def created_at(self) -> str:
        """Time in the manifest at the URL, in ISO 8601; empty if that cannot be read."""
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            return str(json.loads(self._read("manifest.json"))["created_at"])
        return ""

    def bring_up_to_date(self) -> None:
        # A search of this machine writes to the local folder first.
        if not super().is_live():
            self._fetch()

    def is_live(self) -> bool:
        return super().is_live() or self._seems_live()

    def _seems_live(self) -> bool:
        """Whether the last session has not ended, and the last event is less than `SILENT_S` old."""
        last_at = max(self.history().event_times, default=0.0)
        return time.time() - last_at < SILENT_S and self.manifest.state == "running"

    def write_manifest(self, manifest: Manifest) -> None:
        super().write_manifest(manifest)
        self._copy()

    def publish_manifest(self, manifest: Manifest) -> None:
        before = self.manifest
        self.write_manifest(manifest)
        if problem := self._copy(LAST_TRIES):
            super().write_manifest(before)
            raise RunError(
                f"{self._url}: manifest.json could not be copied there ({problem}), where others must read first what "
                f"is about to happen. Nothing was tested; try again when the URL can be reached."
            )

    def drop_checkpoints(self, name: str, but_newest: int = 0) -> None:
        # Removed later, by the thread that copies: the newest may be half-written then.
        self._to_drop.append((name, max(but_newest, 2) if but_newest else 0))

    def _checkpoint_epochs(self, name: str) -> Iterator[tuple[Path | str, int | None]]:
        from trainable.checkpoint import checkpoint_epoch

        for checkpoint in reversed(self._checkpoints(name)):
            url = below(self._url, self.name, "ray", str(checkpoint))
            with fetched(url) as folder:
                yield url, checkpoint_epoch(folder)

    def _checkpoints(self, name: str) -> list[PurePosixPath]:
        """Checkpoints of a trial or replicate at the URL, relative to Ray's folder, oldest first."""
        ray = f"{self._path}/ray"
        found = [""]
        for prefix in ("session_", name, "checkpoint_"):
            inner = [info for folder in found for info in _entries(self._filesystem, f"{ray}/{folder}")]
            folders = [info for info in inner if not info.is_file and info.base_name.startswith(prefix)]
            found = [info.path.removeprefix(f"{ray}/") for info in folders]
        return checkpoints_of(name, map(PurePosixPath, found))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock this machine's copy for writing, and copy each change to the URL.

        Raises:
            InputError: another process of this machine writes, or the URL was written to since it was read.
            RunError: a change could not be copied.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with super().exclusive():
            if self._fetch():
                raise InputError(f"{self.location}: was changed by another process. Try again.")
            if self._seems_live():
                warn_once(
                    f"{self.location}: its last session did not record its end. If a command still runs on another "
                    f"machine, stop it: one process at a time may write."
                )
            ended = threading.Event()
            thread = threading.Thread(target=self._copy_until, args=[ended], name="copier", daemon=True)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                if problem := self._copy(LAST_TRIES):
                    raise RunError(
                        f"{self._url}: results could not be copied there ({problem}). They are complete in "
                        f"{self.folder}; {resume_line(self)} copies them."
                    )

    def _copy_until(self, ended: threading.Event) -> None:
        while not ended.wait(COPY_EVERY_S):
            self._copy()

    def _copy(self, tries: int = 1) -> str | None:
        """Copy all changes to the URL, and drop checkpoints there; returns the problem if that failed."""
        problem = None
        for attempt in range(tries):
            time.sleep(2.0 ** (attempt - 1) if attempt else 0)
            with self._copying:
                try:
                    self._send()
                    self._drop()
                except Exception as error:  # filesystem packages also raise others than OSError, such as KeyError
                    problem = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
                else:
                    return None
            warn_once(
                f"{self._url}: results cannot be copied there at the moment ({problem}); it is tried again, and "
                f"{self.folder} has them meanwhile."
            )
        return problem

    def _send(self) -> None:
        """Copy the files that changed here to the URL."""
        from pyarrow.fs import LocalFileSystem

        synced = _read_synced(self.folder)
        for relative in _copied_files(LocalFileSystem(), str(self.folder)):
            with contextlib.suppress(FileNotFoundError):  # replaced or removed just now
                modified = (self.folder / relative).stat().st_mtime_ns
                if self._modified.get(relative) == modified:
                    continue
                content = (self.folder / relative).read_bytes()
                if synced.get(relative) != _digest(content):
                    self._write(relative, content)
                    synced[relative] = _digest(content)
                    write_json(self.folder / _SYNCED_FILE, synced)
                self._modified[relative] = modified

    def _fetch(self) -> bool:
        """Update this machine's copy, if the URL has the experiment; returns whether files were replaced.

        A file that did not change at the URL since this machine last read or wrote it keeps its local content, which
        may have grown. All other files are replaced by those at the URL.
        """
        is_changed = False
        synced = _read_synced(self.folder)
        before = dict(synced)
        for relative in _copied_files(self._filesystem, self._path):
            content, target = self._read(relative), self.folder / relative
            is_known = synced.get(relative) == _digest(content)
            synced[relative] = _digest(content)
            if not target.is_file() or not (is_known or target.read_bytes() == content):
                is_changed = True
                target.parent.mkdir(parents=True, exist_ok=True)
                with replacing(target) as temporary:
                    temporary.write_bytes(content)
                # The backup of the old local content may be longer, and would be preferred when reading.
                backup_of(target).unlink(missing_ok=True)
        if synced != before:
            write_json(self.folder / _SYNCED_FILE, synced)
        return is_changed

    def _drop(self) -> None:
        while self._to_drop:
            name, n_kept = self._to_drop[0]
            checkpoints = self._checkpoints(name)
            for checkpoint in checkpoints[: max(0, len(checkpoints) - n_kept)]:
                with contextlib.suppress(FileNotFoundError):
                    self._filesystem.delete_dir(f"{self._path}/ray/{checkpoint}")
            self._to_drop.popleft()

    def _read(self, relative: str) -> bytes:
        with self._filesystem.open_input_stream(f"{self._path}/{relative}") as stream:
            return bytes(stream.read())

    def _write(self, relative: str, content: bytes) -> None:
        """Write a file at the URL; readers see the old or the new content, never a part."""
        target = PurePosixPath(self._path, relative)
        temporary = f"{target.parent}/.{target.name}.new"
        self._filesystem.create_dir(str(target.parent), recursive=True)
        with self._filesystem.open_output_stream(temporary) as stream:
            stream.write(content)
        self._filesystem.move(temporary, str(target))


def open_remote_experiment(url: str, given: str | None) -> Experiment:
    """Find an experiment at a URL by its name, or the newest, and update this machine's copy.

    Raises:
        InputError: the URL does not have the experiment; names those that it has.
    """
    if given is not None and not is_a_name(given):
        raise InputError(f"{given!a} is not a name, but --results is a URL: give the experiment's name alone.")
    if given is None:
        experiment = max(_experiments_at(url), key=RemoteExperiment.created_at, default=None)
        if experiment is None:
            raise InputError(f"{url} holds no experiment. Start one with: {command_line('run', results=url)}")
    else:
        experiment = RemoteExperiment(url, given)
        if not experiment.exists():
            names = ", ".join(each.name for each in _experiments_at(url)[:10]) or "none yet"
            raise InputError(f"`{given}` is not an experiment: {url} has {names}. Give one of their names.")
    experiment.bring_up_to_date()
    return experiment


def _experiments_at(url: str) -> list[RemoteExperiment]:
    filesystem, path = opened(url)
    names = sorted(info.base_name for info in _entries(filesystem, path))
    found = [RemoteExperiment(url, name) for name in names if is_a_name(name)]
    return [experiment for experiment in found if experiment.exists()]


def _copied_files(filesystem: FileSystem, folder: str) -> list[str]:
    """Files of an experiment that are copied, relative to its folder: neither hidden ones nor Ray's."""
    files: list[str] = []
    for info in _entries(filesystem, folder):
        if info.base_name != "ray":
            inner = [info] if info.is_file else _entries(filesystem, info.path, recursive=True)
            files += [each.path.removeprefix(f"{folder}/") for each in inner if each.is_file]
    # A store may have names such as `a/../b`, which lead out of the folder.
    visible = [file for file in files if all(part and not part.startswith(".") for part in file.split("/"))]
    return sorted(visible, key=lambda file: (file not in _COPIED_FIRST, file))


def _entries(filesystem: FileSystem, folder: str, recursive: bool = False) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    return list(filesystem.get_file_info(FileSelector(folder.rstrip("/"), recursive=recursive, allow_not_found=True)))


def _read_synced(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / _SYNCED_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
