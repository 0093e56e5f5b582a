"""Checksums (CRC-32) and backups of the files with an experiment's state, against damage and unnoticed edits.

The checksum of a JSON object is its last key; that of a YAML file is a comment in its last line. Files and lines of
earlier versions have none, and are not checked.
"""

import re
import zlib
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from spaces.errors import InputError
from trainable.files import sync

BACKUP_FOLDER = ".backup"
CHECKSUM_KEY = "crc32"
_KEY_START = f'"{CHECKSUM_KEY}": "'.encode()
_KEY_AND_END = re.compile(rb'"crc32": "([0-9a-f]{8})"\s*\}\s*')
_COMMENT = re.compile(rb"# crc32 of the lines above: ([0-9a-f]{8})\n")


def backup_of(path: Path) -> Path:
    """Path of the backup of a state file.

    Raises:
        InputError: the folder for it is a symbolic link.
    """
    folder = path.parent / BACKUP_FOLDER
    must_not_be_a_link(folder)
    return folder / path.name


def must_not_be_a_link(folder: Path) -> None:
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, but must be a folder of its own. Remove it.")


def set_damaged_aside(path: Path) -> None:
    """Rename a damaged file, to keep its content."""
    path.rename(path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"))
    sync(path.parent)


def first_problem(error: ValidationError) -> str:
    """The first problem of a file's content, such as `data.mean.0: Input should be a finite number`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[:100] or "the file"
    return f"{where}: {first['msg'][:200]}"


def json_with_checksum(text: str) -> str:
    """A JSON object, on one line or indented, with a last key `crc32`: the checksum of the text before it."""
    body = text.rstrip().removesuffix("}").rstrip()
    gap, end = ("\n  ", "\n}\n") if "\n" in body else (" ", "}\n")
    start = f"{body},{gap}"
    return f'{start}"{CHECKSUM_KEY}": "{_crc32(start.encode())}"{end}'


def json_must_match(content: bytes) -> None:
    """Raise ValueError if a JSON object has a checksum that is not the one of its content."""
    start = content.rfind(_KEY_START)
    if start < 0:
        return
    found = _KEY_AND_END.fullmatch(content, start)
    if found is None or found[1].decode() != _crc32(content[:start]):
        raise ValueError("its checksum does not match")


def yaml_with_checksum(text: str) -> str:
    """YAML text with a last line that has the checksum of the lines above; `text` ends with a newline."""
    return f"{text}# crc32 of the lines above: {_crc32(text.encode())}\n"


def yaml_matches(content: bytes) -> bool:
    """Whether a YAML file has no checksum, or the correct one."""
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    if not content[start:].startswith(b"# crc32"):
        return True
    found = _COMMENT.fullmatch(content, start)
    return found is not None and found[1].decode() == _crc32(content[:start])


def _crc32(content: bytes) -> str:
    return f"{zlib.crc32(content):08x}"
