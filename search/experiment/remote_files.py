"""The results folder at a URL: reading, writing and listing its files through `pyarrow.fs`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from search.experiment.folder import RAY_SNAPSHOTS, checkpoint_order, is_a_name, owner_of
from search.experiment.journal import backup_of
from spaces.errors import InputError
from trainable.files import replacing
from trainable.locations import opened

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_SYNCED_FILE = ".synced.json"
_COPIED_FIRST = ("experiment.yaml", "journal.jsonl", "manifest.json")  # all other files are derived from these
# Filesystems whose writes replace a file as a whole; on others, a reader could see half of a file.
_ATOMIC_STORES = ("s3", "gcs", "abfs")


def working_folder(url: str) -> Path:
    """The folder of this machine that holds the copy of the results at `url`."""
    from trainable.environment import cache_root

    return cache_root() / "results" / hashlib.sha256(url.encode()).hexdigest()[:16]


class RemoteResults:
    """The results folder at a URL.

    Args:
        url: as pyarrow takes it.

    Raises:
        InputError: pyarrow knows no filesystem for `url`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.folder = working_folder(url)
        self._filesystem, self._path = opened(url)

    def names(self) -> list[str]:
        """Names of all experiments at the URL, sorted.

        Raises:
            InputError: the URL cannot be read.
        """
        with self._read_errors():
            return sorted(name for name in self._folders("") if is_a_name(name) and self.has(name))

    def has(self, name: str) -> bool:
        """Whether the URL holds an experiment called `name`.

        Raises:
            InputError: the URL cannot be read.
        """
        files = [f"{self._path}/{name}/{file}" for file in ("experiment.yaml", "journal.jsonl")]
        with self._read_errors():
            return any(info.is_file for info in self._filesystem.get_file_info(files))

    def fetch(self, name: str, only: tuple[str, ...] = ()) -> list[str]:
        """Update this machine's copy of an experiment.

        A file that did not change at the URL since this machine last read or wrote it keeps its local content, which
        may have grown. All other files are replaced by those at the URL.

        Args:
            name: of the experiment. If the URL does not have it, nothing happens.
            only: files to fetch; empty for all.

        Returns:
            The files that were replaced, as paths relative to the experiment's folder.

        Raises:
            InputError: the URL cannot be read.
        """
        replaced: list[str] = []
        folder = self.folder / name
        with self._read_errors():
            files = [
                file for file in copied_files(self._filesystem, f"{self._path}/{name}") if not only or file in only
            ]
            if not files:
                return replaced
            folder.mkdir(parents=True, exist_ok=True)
            synced = read_synced(folder)
            for relative in files:
                with self._filesystem.open_input_stream(f"{self._path}/{name}/{relative}") as stream:
                    content = bytes(stream.read())
                digest, target = digest_of(content), folder / relative
                if target.is_file() and synced.get(relative) == digest:
                    continue
                synced[relative] = digest
                if not target.is_file() or digest_of(target.read_bytes()) != digest:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write_bytes(target, content)
                    # The backup of the old local content may be longer, and would be preferred when reading.
                    backup_of(target).unlink(missing_ok=True)
                    replaced.append(relative)
            write_synced(folder, synced)
        return replaced

    def write(self, path: str, content: bytes) -> None:
        """Write a file below the URL; readers see the old or the new content, never a part."""
        target = f"{self._path}/{path}"
        folder, _, file = target.rpartition("/")
        is_atomic = self._filesystem.type_name in _ATOMIC_STORES
        written = target if is_atomic else f"{folder}/.{file}-{uuid.uuid4().hex[:8]}"
        if not is_atomic:
            self._filesystem.create_dir(folder, recursive=True)
        with self._filesystem.open_output_stream(written) as stream:
            stream.write(content)
        if not is_atomic:
            self._filesystem.move(written, target)

    def checkpoints(self, name: str, owner: str) -> list[str]:
        """Checkpoint folders of the trial or replicate `owner`, relative to the experiment's `ray/`, oldest first."""
        ray = f"{name}/ray"
        found = [
            f"{session}/{trial}/{checkpoint}"
            for session in self._folders(ray)
            for trial in self._folders(f"{ray}/{session}")
            if owner_of(trial) == owner
            for checkpoint in self._folders(f"{ray}/{session}/{trial}")
            if checkpoint.startswith("checkpoint_")
        ]
        return sorted(found, key=lambda checkpoint: checkpoint_order(Path(checkpoint)))

    def checkpoint_epoch(self, name: str, checkpoint: str) -> int | None:
        """Number of epochs that one of `checkpoints` was trained for; None if it is damaged."""
        from pyarrow.fs import copy_files

        from trainable.checkpoint import checkpoint_epoch

        with tempfile.TemporaryDirectory(prefix="dws-") as folder:
            copy_files(f"{self._path}/{name}/ray/{checkpoint}", folder, source_filesystem=self._filesystem)
            return checkpoint_epoch(Path(folder))

    def remove_checkpoints(self, name: str, owner: str, n_kept: int) -> None:
        """Remove all but the newest `n_kept` of `checkpoints`."""
        checkpoints = self.checkpoints(name, owner)
        for checkpoint in checkpoints[: max(0, len(checkpoints) - n_kept)]:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.delete_dir(f"{self._path}/{name}/ray/{checkpoint}")

    def remove_ray_snapshots(self, name: str) -> None:
        """Like `Experiment.drop_ray_snapshots`."""
        for session in self._folders(f"{name}/ray"):
            for info in self._list(f"{name}/ray/{session}"):
                if info.is_file and any(fnmatch(info.base_name, pattern) for pattern in RAY_SNAPSHOTS):
                    self._filesystem.delete_file(info.path)

    def _folders(self, path: str) -> list[str]:
        return [info.base_name for info in self._list(path) if not info.is_file]

    def _list(self, path: str) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        base = f"{self._path}/{path}".rstrip("/")
        return list(self._filesystem.get_file_info(FileSelector(base, allow_not_found=True)))

    @contextlib.contextmanager
    def _read_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.url}: cannot be read ({reason_of(error)}).") from error


def copied_files(filesystem: FileSystem, folder: str) -> list[str]:
    """Files of an experiment that are copied, relative to its folder: neither hidden ones nor Ray's."""
    from pyarrow.fs import FileSelector

    files: list[str] = []
    for info in filesystem.get_file_info(FileSelector(folder, allow_not_found=True)):
        if info.base_name == "ray" or info.base_name.startswith("."):
            continue
        inner = [info] if info.is_file else filesystem.get_file_info(FileSelector(info.path, recursive=True))
        files += [each.path.removeprefix(f"{folder}/") for each in inner if each.is_file]
    # A store may have names such as `a/../b`, which lead out of the folder.
    visible = [file for file in files if all(part and not part.startswith(".") for part in file.split("/"))]
    return sorted(visible, key=lambda file: (file not in _COPIED_FIRST, file))


def read_synced(folder: Path) -> dict[str, str]:
    """SHA-256 of each file when the local folder and the URL last agreed on it."""
    try:
        content = json.loads((folder / _SYNCED_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {str(name): str(digest) for name, digest in content.items()} if isinstance(content, dict) else {}


def write_synced(folder: Path, synced: dict[str, str]) -> None:
    _write_bytes(folder / _SYNCED_FILE, json.dumps(synced, indent=0).encode())


def _write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reason_of(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")[:300]
