"""Experiments at a URL: a working folder on this machine, and a copy at the URL that follows it.

What is copied is all of an experiment but `ray/`, which Ray itself writes to the URL. One process at a time may
write: it holds a lease, a small file beside the others that it renews.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import queue
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.experiment.command_lines import command_line, resume_line
from search.experiment.folder import RAY_SNAPSHOTS, Experiment, checkpoint_order, is_a_name, list_experiments, owner_of
from search.experiment.journal import backup_of
from spaces.errors import InputError, RunError
from trainable.locations import below, opened

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo

    from search.experiment.manifest import Manifest

# Looks for changed files this often, and copies for at most a third of the time.
COPY_EVERY_S = 1.0
SHARE_OF_COPYING = 3
LEASE_S = 60.0
RENEW_EVERY_S = 15.0
# Two that take the lease at once see it after this long.
SETTLE_S = 0.5
LAST_TRIES = 4

_LEASE_FILE = ".lease.json"
_SYNCED_FILE = ".synced.json"
# What makes a folder an experiment comes first, then what everything is derived from.
_FIRST = ("experiment.yaml", "journal.jsonl", "manifest.json")
# These replace a file as a whole; elsewhere a reader could meet half of one.
_WHOLE_FILE_STORES = ("s3", "gcs", "abfs")


def working_folder(url: str) -> Path:
    """Where this machine keeps its copy of the results at `url`."""
    from trainable.environment import cache_root

    return cache_root() / "results" / hashlib.sha256(url.encode()).hexdigest()[:16]


class RemoteResults:
    """The results folder at a URL.

    Args:
        url: as pyarrow takes it.

    Raises:
        InputError: no filesystem is known for it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._filesystem, self._path = opened(url)

    @property
    def folder(self) -> Path:
        """Of this machine."""
        return working_folder(self.url)

    def names(self) -> list[str]:
        """Of all experiments there.

        Raises:
            InputError: the URL cannot be read.
        """
        with self._warned():
            names = [Path(info.path).name for info in self._list("") if not info.is_file]
            return sorted(name for name in names if is_a_name(name) and self.has(name))

    def has(self, name: str) -> bool:
        """Whether there is an experiment of that name."""
        from pyarrow.fs import FileType

        files = [f"{self._path}/{name}/{file}" for file in ("experiment.yaml", "journal.jsonl")]
        with self._warned():
            return any(info.type == FileType.File for info in self._filesystem.get_file_info(files))

    def fetch(self, name: str, only: tuple[str, ...] = ()) -> list[str]:
        """Bring this machine's copy of an experiment up to date.

        A file that is at the URL as it was when this machine last knew it, is kept as it is here: it may have
        grown since. Any other is taken from the URL.

        Args:
            name: of the experiment; where there is none, nothing happens.
            only: the files to fetch; all but Ray's without.

        Returns:
            The files that were taken, as paths in the experiment's folder.
        """
        taken: list[str] = []
        folder = self.folder / name
        with self._warned():
            files = sorted(self._files(name))
            if not files:
                return taken
            folder.mkdir(parents=True, exist_ok=True)
            synced = _read_synced(folder)
            for relative in files:
                if only and relative not in only:
                    continue
                content = self.read(f"{name}/{relative}")
                digest = _digest(content)
                target = folder / relative
                if content is None or (target.is_file() and synced.get(relative) == digest):
                    continue
                synced[relative] = digest
                if not target.is_file() or _digest(target.read_bytes()) != digest:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write_bytes(target, content)
                    # Of what was here before: it may be longer, but the URL is right.
                    backup_of(target).unlink(missing_ok=True)
                    taken.append(relative)
            _write_synced(folder, synced)
        return taken

    def read(self, path: str) -> bytes | None:
        """The bytes of a file below the URL; None where there is none."""
        try:
            with self._filesystem.open_input_stream(f"{self._path}/{path}") as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file below the URL as a whole."""
        target = f"{self._path}/{path}"
        if self._filesystem.type_name in _WHOLE_FILE_STORES:
            self._put(target, content)
            return
        folder, _, file = target.rpartition("/")
        self._filesystem.create_dir(folder, recursive=True)
        temporary = f"{folder}/.{file}-{uuid.uuid4().hex[:8]}"
        self._put(temporary, content)
        self._filesystem.move(temporary, target)

    def remove(self, path: str) -> None:
        """Remove a file below the URL, if it is there."""
        try:
            self._filesystem.delete_file(f"{self._path}/{path}")
        except FileNotFoundError:
            return

    def checkpoints(self, name: str) -> list[tuple[str, str]]:
        """The folders of all checkpoints of an experiment, below its `ray`, and the trial's or run's name of each."""
        found = set()
        for info in self._list(f"{name}/ray", recursive=True):
            parts = info.path.removeprefix(f"{self._path}/{name}/ray/").split("/")
            if len(parts) >= 3 and parts[2].startswith("checkpoint_"):
                found.add(("/".join(parts[:3]), owner_of(parts[1])))
        return sorted(found)

    def remove_checkpoint(self, name: str, checkpoint: str) -> None:
        """Remove one of `checkpoints`, if it is there."""
        try:
            self._filesystem.delete_dir(f"{self._path}/{name}/ray/{checkpoint}")
        except FileNotFoundError:
            return

    def remove_ray_snapshots(self, name: str) -> None:
        """As `Experiment.drop_ray_snapshots`."""
        for session in self._list(f"{name}/ray"):
            for info in [] if session.is_file else self._list(f"{name}/ray/{session.base_name}"):
                if info.is_file and any(fnmatch(info.base_name, pattern) for pattern in RAY_SNAPSHOTS):
                    self._filesystem.delete_file(info.path)

    def copy_of_checkpoint(self, name: str, checkpoint: str, folder: str) -> None:
        """Copy one of `checkpoints` into an empty folder of this machine."""
        from pyarrow.fs import copy_files

        copy_files(f"{self._path}/{name}/ray/{checkpoint}", folder, source_filesystem=self._filesystem)

    def _put(self, target: str, content: bytes) -> None:
        with self._filesystem.open_output_stream(target) as stream:
            stream.write(content)

    def _files(self, name: str) -> Iterator[str]:
        for info in self._list(name):
            if info.is_file:
                yield from _visible(info.base_name)
            elif info.base_name != "ray" and not info.base_name.startswith("."):
                for below_it in self._list(f"{name}/{info.base_name}", recursive=True):
                    if below_it.is_file:
                        yield from _visible(below_it.path.removeprefix(f"{self._path}/{name}/"))

    def _list(self, path: str, recursive: bool = False) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        base = f"{self._path}/{path}".rstrip("/")
        return list(self._filesystem.get_file_info(FileSelector(base, recursive=recursive, allow_not_found=True)))

    @contextlib.contextmanager
    def _warned(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.url}: cannot be read ({_reason(error)}).") from error


class RemoteExperiment(Experiment):
    """An experiment at a URL; its folder is this machine's copy.

    Args:
        remote: the results folder that it is in.
        name: its own.
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
        _fetch_unless_live(self.remote, self.name)

    def write_manifest(self, manifest: Manifest) -> None:
        super().write_manifest(manifest)
        if self._copier:
            self._copier.copy_now()

    def publish_manifest(self, manifest: Manifest) -> None:
        """As an experiment's on a disk, but it must be at the URL.

        Raises:
            RunError: it could not be copied there; here it is as it was before.
        """
        before = self.manifest
        super().write_manifest(manifest)
        if self._copier and not self._copier.copied_in_some_tries():
            super().write_manifest(before)
            raise RunError(
                f"{self.remote.url}: manifest.json could not be copied there, where others must read first what is "
                f"about to happen. Nothing was tested; try again when the URL can be reached."
            )

    def drop_checkpoints(self, name: str, but_newest: int = 0) -> None:
        if self._copier:
            # It is done later: by then the newest may be half-written.
            self._copier.drop_checkpoints(name, max(but_newest, 2) if but_newest else 0)

    def drop_ray_snapshots(self) -> None:
        if self._copier:
            self._copier.drop_ray_snapshots()

    def newest_checkpoint(self, name: str, n_epochs_known: int) -> str | None:
        """As an experiment's on a disk, but a URL."""
        from trainable.checkpoint import checkpoint_epoch

        best: tuple[int, str] | None = None
        for checkpoint, owner in self.remote.checkpoints(self.name):
            if owner != name:
                continue
            with tempfile.TemporaryDirectory(prefix="dws-") as folder:
                self.remote.copy_of_checkpoint(self.name, checkpoint, folder)
                epoch = checkpoint_epoch(Path(folder))
            if epoch is not None and epoch <= n_epochs_known and (best is None or epoch > best[0]):
                best = (epoch, below(self.remote.url, self.name, "ray", checkpoint))
        return best[1] if best else None

    def is_live(self) -> bool:
        return super().is_live() or _Lease(self.remote, self.name).holder() is not None

    def must_be_free(self) -> None:
        if super().is_live():
            super().must_be_free()
        _Lease(self.remote, self.name).must_be_free()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the folder here and at the URL for writing, and copy what changes.

        Raises:
            InputError: another process holds it, or wrote to it since it was opened.
            RunError: what changed could not be copied, or another process took over.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lease = _Lease(self.remote, self.name)
        with super().exclusive():
            lease.acquire()
            try:
                if self.remote.fetch(self.name):
                    raise InputError(f"{self.remote.url}: {self.name} was changed by another process. Try again.")
                self._copier = _Copier(self, lease)
                with _sigterm_raises():
                    self._copier.start()
                    try:
                        yield
                    finally:
                        self._copier.stop()
            finally:
                lease.release()


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Have the copier's SIGTERM unwind a command that does not listen to it, so that `stop` can say why it came."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def open_remote_experiment(url: str, given: str | None) -> Experiment:
    """Find an experiment at a URL by its name, and bring this machine's copy up to date; None is the newest.

    Raises:
        InputError: there is none; names those that there are.
    """
    remote = RemoteResults(url)
    if given is not None and not is_a_name(given):
        raise InputError(f"{given!a} is not a name, but --results is a URL: give the experiment's name alone.")
    if given is None:
        given = _newest_name(remote)
    elif not remote.has(given) and not _was_never_copied(remote.folder / given):
        names = ", ".join(remote.names()[:10]) or "none yet"
        raise InputError(f"`{given}` is not an experiment: {url} has {names}. Give one of their names.")
    _fetch_unless_live(remote, given)
    return RemoteExperiment(remote, given)


def _newest_name(remote: RemoteResults) -> str:
    names = remote.names()
    for name in names:
        _fetch_unless_live(remote, name, ("experiment.yaml", "manifest.json"))
    newest = next((experiment.name for experiment in list_experiments(remote.folder) if experiment.name in names), None)
    if newest is None:
        raise InputError(f"{remote.url} holds no experiment. Start one with: {command_line('run', results=remote.url)}")
    return newest


def _fetch_unless_live(remote: RemoteResults, name: str, only: tuple[str, ...] = ()) -> None:
    # A search that runs on this machine writes its files here first.
    if not Experiment(remote.folder / name).is_live():
        remote.fetch(name, only)


def _was_never_copied(folder: Path) -> bool:
    """Whether a process ended before it could copy anything of its experiment to the URL."""
    return (folder / "journal.jsonl").is_file() and not _read_synced(folder)


class _Lease:
    """Says at the URL who writes to an experiment. Goes by clocks, which must agree within half a minute."""

    def __init__(self, remote: RemoteResults, name: str) -> None:
        self._remote = remote
        self._name = name
        self._path = f"{name}/{_LEASE_FILE}"
        self._own = {"id": uuid.uuid4().hex, "host": platform.node(), "pid": os.getpid()}

    def holder(self) -> dict[str, Any] | None:
        """Who holds it; None where nobody does, or a process that is no more."""
        lease = self._read()
        if lease is None or time.time() - lease["renewed_at"] > LEASE_S:
            return None
        if lease["host"] == platform.node() and not _is_alive(lease["pid"]):
            return None
        return lease

    def must_be_free(self) -> None:
        """Raise InputError, naming the process, if another holds it."""
        holder = self.holder()
        if holder and holder["id"] != self._own["id"]:
            raise InputError(
                f"{self._remote.url}: {self._name} is in use by process {holder['pid']} on {holder['host']}. Wait "
                f"until it ends; one that was killed is forgotten after {LEASE_S:.0f} s."
            )

    def acquire(self) -> None:
        """Take it, or raise InputError."""
        self.must_be_free()
        self._write()
        time.sleep(SETTLE_S)
        self.must_be_free()

    def renew(self) -> bool:
        """Whether it is still ours; if so it is for another while."""
        lease = self._read()
        # None: another process took it after we were silent for long, and has given it back since.
        if lease is None or lease["id"] != self._own["id"]:
            return False
        self._write()
        return True

    def release(self) -> None:
        """Give it back, where it is ours. It runs out by itself where the URL cannot be reached."""
        with contextlib.suppress(OSError):
            lease = self._read()
            if lease and lease["id"] == self._own["id"]:
                self._remote.remove(self._path)

    def _read(self) -> dict[str, Any] | None:
        """What the file says; None where there is none, or it is not one of ours."""
        content = self._remote.read(self._path)
        try:
            lease = json.loads(content or b"null")
            return {
                "id": str(lease["id"]),
                "host": str(lease["host"]),
                "pid": int(lease["pid"]),
                "renewed_at": float(lease["renewed_at"]),
            }
        except (ValueError, TypeError, KeyError):
            return None

    def _write(self) -> None:
        self._remote.write(self._path, json.dumps({**self._own, "renewed_at": time.time()}).encode())


class _Copier:
    """Copies an experiment's files to its URL when they change, from a thread of its own.

    Args:
        experiment: whose folder to follow.
        lease: held; renewed here.
    """

    def __init__(self, experiment: RemoteExperiment, lease: _Lease) -> None:
        self._remote = experiment.remote
        self._again = resume_line(experiment)
        self._name = experiment.name
        self._folder = experiment.folder
        self._lease = lease
        self._synced = _read_synced(self._folder)
        self._seen: dict[str, tuple[int, int]] = {}
        # Names of trials or runs, and how many checkpoints each keeps.
        self._to_drop: queue.SimpleQueue[tuple[str, int]] = queue.SimpleQueue()
        self._drops_snapshots = False
        self._stopping = threading.Event()
        self._copying = threading.Lock()
        # At the first copy it is looked at in any case: fetching, since it was taken, may have lasted.
        self._renewed_s = -math.inf
        self._trouble: str | None = None
        self._said = False
        self._lost = False
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="copier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def drop_checkpoints(self, name: str, but_newest: int) -> None:
        """Remove those of a trial or run at the URL but the newest ones, soon."""
        self._to_drop.put((name, but_newest))

    def drop_ray_snapshots(self) -> None:
        """Remove Ray's own state of its sessions at the URL, soon."""
        self._drops_snapshots = True

    def stop(self) -> None:
        """Copy what is left.

        Raises:
            RunError: it cannot be copied, or another process writes to the experiment.
        """
        self._stopping.set()
        self._thread.join()
        self.copied_in_some_tries()
        if self._failure:
            raise RunError(
                f"{self._remote.url}: {self._what_failed(self._failure)}. They are complete in {self._folder}; "
                f"{self._again} copies them."
            ) from self._failure
        if self._lost:
            raise RunError(
                f"{self._remote.url}: another process took {self._name} over, while this one could not be heard of "
                f"for {LEASE_S:.0f} s. What this one did since is in {self._folder} only."
            )
        if self._trouble:
            raise RunError(
                f"{self._remote.url}: results could not be copied there ({self._trouble}). They are complete in "
                f"{self._folder}; {self._again} copies them."
            )

    def copied_in_some_tries(self) -> bool:
        """As `copy_now`, but where that fails, after some seconds again."""
        for attempt in range(LAST_TRIES):
            if self.copy_now():
                return True
            if self._has_given_up:
                return False
            time.sleep(2.0**attempt)
        return False

    def _run(self) -> None:
        pause_s = COPY_EVERY_S
        while not self._stopping.wait(pause_s):
            started_s = time.monotonic()
            self.copy_now()
            if self._has_given_up:
                self._end_session()
                return
            pause_s = max(COPY_EVERY_S, SHARE_OF_COPYING * (time.monotonic() - started_s))

    def _end_session(self) -> None:
        if self._stopping.is_set():
            return
        if self._failure:
            print(f"{self._remote.url}: {self._what_failed(self._failure)}; this command ends.", file=sys.stderr)
        # Taken as Ctrl-C is: the search ends cleanly, and `stop` says why.
        os.kill(os.getpid(), signal.SIGTERM)

    @property
    def _has_given_up(self) -> bool:
        """Whether nothing will be copied any more, whatever is tried."""
        return self._lost or self._failure is not None

    def copy_now(self) -> bool:
        """Copy what changed; whether all of it is at the URL now."""
        with self._copying:
            if self._has_given_up:
                return False
            try:
                # First of all: nothing of another process's may be overwritten or removed.
                self._renew_if_due()
                if self._lost:
                    return False
                self._copy()
                self._drop()
            except OSError as error:
                self._trouble = _reason(error)
                self._say(error)
                return False
            except Exception as error:  # such as a KeyError of a file system's package; kept for `stop`
                self._failure = error
                return False
            self._trouble = None
            self._said = False
            return True

    def _renew_if_due(self) -> None:
        now_s = time.monotonic()
        if now_s - self._renewed_s >= RENEW_EVERY_S:
            self._lost = not self._lease.renew()
            self._renewed_s = now_s

    def _copy(self) -> None:
        changed = False
        try:
            for relative in _files_in_order(self._folder):
                path = self._folder / relative
                try:
                    stat = path.stat()
                    mark = (stat.st_mtime_ns, stat.st_size)
                    if self._seen.get(relative) == mark:
                        continue
                    content = path.read_bytes()
                except FileNotFoundError:
                    continue  # replaced or removed just now
                digest = _digest(content)
                if self._synced.get(relative) != digest:
                    self._remote.write(f"{self._name}/{relative}", content)
                    self._synced[relative] = digest
                    changed = True
                self._seen[relative] = mark
        finally:
            if changed:
                _write_synced(self._folder, self._synced)

    def _drop(self) -> None:
        if self._drops_snapshots:
            self._remote.remove_ray_snapshots(self._name)
            self._drops_snapshots = False
        kept: dict[str, int] = {}
        while not self._to_drop.empty():
            name, but_newest = self._to_drop.get()
            kept[name] = min(but_newest, kept.get(name, but_newest))
        try:
            found: dict[str, list[str]] = {}
            for checkpoint, owner in self._remote.checkpoints(self._name) if kept else ():
                found.setdefault(owner, []).append(checkpoint)
            for name, but_newest in kept.items():
                ordered = sorted(found.get(name, []), key=lambda checkpoint: checkpoint_order(Path(checkpoint)))
                for checkpoint in ordered[: max(0, len(ordered) - but_newest)]:
                    self._remote.remove_checkpoint(self._name, checkpoint)
        except OSError:
            for name, but_newest in kept.items():
                self._to_drop.put((name, but_newest))
            raise

    def _what_failed(self, error: Exception) -> str:
        return f"results could not be copied there ({type(error).__name__}: {_reason(error)})"

    def _say(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            print(
                f"{self._remote.url}: results cannot be copied there at the moment ({_reason(error)}); it is tried "
                f"again, and {self._folder} has them meanwhile.",
                file=sys.stderr,
            )


def _files_in_order(folder: Path) -> list[str]:
    """The files of an experiment that are copied, the important ones first."""
    found = []
    for path in folder.iterdir():
        if path.name == "ray" or path.name.startswith(".") or path.is_symlink():
            continue
        inner = path.rglob("*") if path.is_dir() else [path]
        found += [each.relative_to(folder).as_posix() for each in inner if each.is_file() and not each.is_symlink()]
    shown = [shown for relative in found for shown in _visible(relative)]
    return sorted(shown, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _visible(relative: str) -> Iterator[str]:
    """`relative` itself, unless it is a file of the moment, or leads out of the folder."""
    if relative and not any(part.startswith(".") or not part for part in relative.split("/")):
        yield relative


def _read_synced(folder: Path) -> dict[str, str]:
    """For each file, the sha256 that it had here and at the URL when both last agreed."""
    try:
        content = json.loads((folder / _SYNCED_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in content.items()} if isinstance(content, dict) else {}


def _write_synced(folder: Path, synced: dict[str, str]) -> None:
    _write_bytes(folder / _SYNCED_FILE, json.dumps(synced, indent=0).encode())


def _write_bytes(path: Path, content: bytes) -> None:
    from trainable.files import replacing

    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _digest(content: bytes | None) -> str:
    return hashlib.sha256(content or b"").hexdigest()


def _reason(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:300]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
