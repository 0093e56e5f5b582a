"""A file that was replaced is there after a power cut: content, then name, then the folder that holds the name."""

import errno
import os
from pathlib import Path

import pytest

from trainable.files import replacing, sync, write_json


def test_content_name_and_folder_reach_the_disk_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(handle: int) -> None:
        calls.append(("fsync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        fsync(handle)

    def recorded_replace(source: Path, target: Path) -> None:
        calls.append(("replace", str(source)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_json(tmp_path / "x.json", {"a": 1})
    temporary = calls[0][1]
    assert Path(temporary).name.startswith(".x.json-")
    assert calls == [("fsync", temporary), ("replace", temporary), ("fsync", str(tmp_path))]


def test_a_failed_block_leaves_the_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")
    with pytest.raises(LookupError), replacing(tmp_path / "x") as temporary:
        temporary.write_text("half", encoding="no such encoding")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "before"}


def test_a_file_system_that_cannot_sync_folders_is_put_up_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text("content")

    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync(tmp_path)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(tmp_path / "x")
