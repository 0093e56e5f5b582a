"""Checksums (CRC-32) in text files, which detect damage by a disk and edits by a user.

The checksum of a JSON object is its last key; the checksum of a YAML file is a comment in its last line. Files and
lines of earlier versions have no checksum, and are not checked.
"""

import re
import zlib

KEY = "crc32"
_KEY_START = f'"{KEY}": "'.encode()
_KEY_AND_END = re.compile(rb'"crc32": "([0-9a-f]{8})"\s*\}\s*')
_COMMENT = re.compile(rb"# crc32 of the lines above: ([0-9a-f]{8})\n")


def json_with_checksum(text: str) -> str:
    """A JSON object, on one line or indented, with a last key `crc32`: the checksum of the text before it."""
    body = text.rstrip().removesuffix("}").rstrip()
    gap, end = ("\n  ", "\n}\n") if "\n" in body else (" ", "}\n")
    start = f"{body},{gap}"
    return f'{start}"{KEY}": "{_crc32(start.encode())}"{end}'


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
