"""Experiments at a URL: a search works in a folder of this machine, and a thread copies its files to the URL.

One process at a time may write to an experiment at a URL. No lock enforces that: two searches that write to the same
experiment overwrite each other's files. To create an experiment whose name exists at the URL is refused, and a
resumed search names the host that wrote last, unless that host recorded the end of its session.

All files are copied except those below `ray/`: Ray itself writes checkpoints to the URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from search.experiment.command_lines import command_line, resume_line
from search.experiment.folder import Experiment, is_a_name, list_experiments
from search.experiment.journal import MAX_LINE_BYTES
from search.experiment.remote_files import RemoteResults, copied_files, digest_of, read_synced, reason_of, write_synced
from spaces.errors import InputError, RunError
from spaces.plain_files import open_plain
from trainable.locations import below

if TYPE_CHECKING:
    from search.experiment.manifest import Manifest

COPY_EVERY_S = 1.0
SHARE_OF_COPYING = 3  # the thread copies during at most a third of the time
LAST_TRIES = 4
SILENT_S = 600.0  # a search on another machine without a journaled event for so long is taken for dead


class RemoteExperiment(Experiment):
    """An experiment at a URL; `folder` is this machine's copy.

    Args:
        remote: results folder that holds the experiment.
        name: of the experiment.
    """

    def __init__(self, remote: RemoteResults, name: str) -> None:
        super().__init__(remote.folder / name)
        self.remote = remote
        self._copier: _Copier | None = None

    @property
    def location(self) -> str:
        return below(self.remote.url, self.name)

    @property
    def results(self) -> str:
        return self.remote.url

    @property
    def ray_storage(self) -> str:
        return below(self.remote.url, self.name, "ray")

    def bring_up_to_date(self) -> None:
        # A search of this machine writes to the local folder first.
        if not super().is_live():
            self.remote.fetch(self.name)

    def write_manifest(self, manifest: Manifest) -> None:
        super().write_manifest(manifest.model_copy(update={"written_by": platform.node()}))
        if self._copier:
            self._copier.copy_now()

    def publish_manifest(self, manifest: Manifest) -> None:
        """Write the manifest here and at the URL.

        Raises:
            RunError: it could not be copied to the URL; the local manifest is the previous one again.
        """
        before = self.manifest
        self.write_manifest(manifest)
        if self._copier and not self._copier.copy_with_retries():
            super().write_manifest(before)
            raise RunError(
                f"{self.remote.url}: manifest.json could not be copied there, where others must read first what is "
                f"about to happen. Nothing was tested; try again when the URL can be reached."
            )

    def drop_checkpoints(self, name: str, but_newest: int = 0) -> None:
        if self._copier:
            # The copier removes them later, when the newest checkpoint may be half-written.
            n_kept = max(but_newest, 2) if but_newest else 0
            self._copier.later(lambda: self.remote.remove_checkpoints(self.name, name, n_kept))

    def drop_ray_snapshots(self) -> None:
        if self._copier:
            self._copier.later(lambda: self.remote.remove_ray_snapshots(self.name))

    def newest_checkpoint(self, name: str, n_epochs_known: int) -> str | None:
        """Like `Experiment.newest_checkpoint`, but returns a URL."""
        own = self.remote.checkpoints(self.name, name)
        epochs = [(self.remote.checkpoint_epoch(self.name, checkpoint) or 0, checkpoint) for checkpoint in own]
        usable = [(epoch, checkpoint) for epoch, checkpoint in epochs if 0 < epoch <= n_epochs_known]
        # The last of equals is of the latest session.
        newest = max(reversed(usable), key=lambda pair: pair[0], default=None)
        return below(self.remote.url, self.name, "ray", newest[1]) if newest else None

    def is_live(self) -> bool:
        """Whether a process of this machine searches here, or one of another machine seems to.

        The latter is known from the copy: its session has not ended, and its last event is less than `SILENT_S` old.
        """
        return super().is_live() or (
            self._other_writer() is not None and time.time() - _last_event_at(self.folder / "journal.jsonl") < SILENT_S
        )

    def _other_writer(self) -> str | None:
        """Host name of another machine that wrote last and did not record the end of its session."""
        with contextlib.suppress(InputError):
            manifest = self.manifest
            if manifest.state == "running" and manifest.written_by != platform.node():
                return manifest.written_by
        return None

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock this machine's copy for writing, and copy each change to the URL.

        Raises:
            InputError: another process of this machine writes, or the URL was written to since it was read.
            RunError: a change could not be copied.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with super().exclusive():
            if self.remote.fetch(self.name):
                raise InputError(f"{self.remote.url}: {self.name} was changed by another process. Try again.")
            if host := self._other_writer():
                self.warn_once(
                    f"{self.location}: {host} wrote last, and did not record the end of its session. If a command "
                    f"still runs there, stop it: one process at a time may write."
                )
            self._copier = _Copier(self)
            self._copier.start()
            try:
                yield
            finally:
                self._copier.stop()


def open_remote_experiment(url: str, given: str | None) -> Experiment:
    """Find an experiment at a URL by its name, and update this machine's copy.

    Args:
        url: of the results.
        given: name of the experiment; None for the newest.

    Raises:
        InputError: the URL does not have the experiment; names those that it has.
    """
    remote = RemoteResults(url)
    if given is not None and not is_a_name(given):
        raise InputError(f"{given!a} is not a name, but --results is a URL: give the experiment's name alone.")
    if given is None:
        given = _newest_name(remote)
    elif not remote.has(given) and not _was_never_copied(remote.folder / given):
        names = ", ".join(remote.names()[:10]) or "none yet"
        raise InputError(f"`{given}` is not an experiment: {url} has {names}. Give one of their names.")
    experiment = RemoteExperiment(remote, given)
    experiment.bring_up_to_date()
    return experiment


def _newest_name(remote: RemoteResults) -> str:
    names = remote.names()
    for name in names:
        if not Experiment(remote.folder / name).is_live():
            remote.fetch(name, ("experiment.yaml", "manifest.json"))
    newest = next((experiment.name for experiment in list_experiments(remote.folder) if experiment.name in names), None)
    if newest is None:
        raise InputError(f"{remote.url} holds no experiment. Start one with: {command_line('run', results=remote.url)}")
    return newest


def _was_never_copied(folder: Path) -> bool:
    """Whether a search in `folder` ended before it copied any file to the URL."""
    return (folder / "journal.jsonl").is_file() and not read_synced(folder)


def _last_event_at(journal: Path) -> float:
    """Time of the last event of a journal, seconds since 1970 (UTC); 0 if it cannot be read."""
    try:
        with open_plain(journal) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_LINE_BYTES))
            return float(json.loads(file.read().splitlines()[-1])["at"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError):
        return 0.0


class _Copier:
    """A thread that copies the changed files of an experiment to its URL.

    Attributes:
        trouble: why the last attempt to copy failed; None if it succeeded.
    """

    def __init__(self, experiment: RemoteExperiment) -> None:
        self.trouble: str | None = None
        self._remote = experiment.remote
        self._resume_line = resume_line(experiment)
        self._name = experiment.name
        self._folder = experiment.folder
        self._synced = read_synced(self._folder)
        self._seen: dict[str, tuple[int, int]] = {}
        self._removals: deque[Callable[[], None]] = deque()
        self._stopping = threading.Event()
        self._copying = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def later(self, removal: Callable[[], None]) -> None:
        """Have the thread call `removal` after its next copy; again after later ones while it raises."""
        self._removals.append(removal)

    def stop(self) -> None:
        """Copy the remaining changes, and end the thread.

        Raises:
            RunError: the changes could not be copied.
        """
        self._stopping.set()
        self._thread.join()
        if not self.copy_with_retries():
            raise RunError(
                f"{self._remote.url}: results could not be copied there ({self.trouble}). They are complete in "
                f"{self._folder}; {self._resume_line} copies them."
            )

    def copy_with_retries(self) -> bool:
        """Like `copy_now`, but try up to `LAST_TRIES` times."""
        for attempt in range(LAST_TRIES):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            if self.copy_now():
                return True
        return False

    def copy_now(self) -> bool:
        """Copy all changes; returns whether the URL is up to date now."""
        with self._copying:
            try:
                self._copy()
                while self._removals:
                    self._removals[0]()
                    self._removals.popleft()
            except Exception as error:  # filesystem packages also raise others than OSError, such as KeyError
                self._warn_once_of(error)
                return False
            self.trouble = None
            return True

    def _run(self) -> None:
        pause_s = COPY_EVERY_S
        while not self._stopping.wait(pause_s):
            started_s = time.monotonic()
            self.copy_now()
            pause_s = max(COPY_EVERY_S, SHARE_OF_COPYING * (time.monotonic() - started_s))

    def _copy(self) -> None:
        from pyarrow.fs import LocalFileSystem

        before = dict(self._synced)
        try:
            for relative in copied_files(LocalFileSystem(), str(self._folder)):
                path = self._folder / relative
                try:
                    stat = path.stat()
                    if self._seen.get(relative) == (stat.st_mtime_ns, stat.st_size):
                        continue
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue  # replaced or removed just now
                digest = digest_of(content)
                if self._synced.get(relative) != digest:
                    self._remote.write(f"{self._name}/{relative}", content)
                    self._synced[relative] = digest
                self._seen[relative] = (stat.st_mtime_ns, stat.st_size)
        finally:
            if self._synced != before:
                write_synced(self._folder, self._synced)

    def _warn_once_of(self, error: Exception) -> None:
        reason = reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__}: {reason_of(error)}"
        if self.trouble is None:
            print(
                f"{self._remote.url}: results cannot be copied there at the moment ({reason}); it is tried "
                f"again, and {self._folder} has them meanwhile.",
                file=sys.stderr,
            )
        self.trouble = reason
