"""The journal: an append-only file of events, from which everything else in an experiment is derived.

Ray's own snapshots are not read back: ASHA's rungs are not in them, a truncated one silently starts a
fresh search, and restoring them unpickles. One JSON object a line survives a crash at any byte.
"""

import json
import os
from pathlib import Path

from search.records import Event, History, event_as_dict, event_from_dict
from spaces.errors import InputError
from spaces.plain_files import open_plain

# Our lines have some hundred bytes, and a journal of 100,000 trials × 27 epochs has about 600 MB; anything over
# these is not one of ours.
MAX_LINE_BYTES = 64 * 1024
MAX_BYTES = 2**31


class Journal:
    """Appends events to a file; each is on the disk when `append` returns.

    Args:
        path: made when the first event comes. A half-written last line, as a power cut leaves it, is cut off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        _cut_torn_tail(path)

    def append(self, event: Event) -> None:
        line = json.dumps(event_as_dict(event), allow_nan=False) + "\n"
        with open_plain(self.path, "ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_history(path: Path) -> History:
    """All that a journal says; an experiment without one has no trials yet.

    Raises:
        InputError: a line in the middle is damaged; names it. Or it is not a plain file, or far too large.
    """
    history = History()
    if not os.path.lexists(path):
        return history
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > MAX_BYTES:
            raise InputError(f"{path}: is over {MAX_BYTES / 2**30:g} GiB, which no search writes. Restore it.")
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError("it is too long")
                if not line.endswith(b"\n"):
                    break
                history.apply(event_from_dict(json.loads(line, parse_constant=_refuse_constant)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{path}:{number}: is not an event of a search ({type(error).__name__}: {str(error)[:200]}). "
                    f"Restore the file from a copy, or remove that line and those after it."
                ) from None
    return history


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _cut_torn_tail(path: Path) -> None:
    if not os.path.lexists(path):
        return
    with open_plain(path, "r+b") as file:
        content_end = file.seek(0, os.SEEK_END)
        position = content_end
        while position > 0:
            step = min(4096, position)
            position -= step
            file.seek(position)
            newline = file.read(step).rfind(b"\n")
            if newline >= 0:
                file.truncate(position + newline + 1)
                return
        file.truncate(0)
