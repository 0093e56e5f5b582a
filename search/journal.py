"""The journal: an append-only file of events, from which everything else in an experiment is derived.

Ray's own snapshots are not read back: ASHA's rungs are not in them, a truncated one silently starts a
fresh search, and restoring them unpickles. One JSON object a line survives a crash at any byte.
"""

import json
import os
from pathlib import Path

from search.records import Event, History, event_as_dict, event_from_dict
from spaces.errors import InputError

# A journal of 100,000 trials × 27 epochs is about 600 MB; anything over this is not one of ours.
MAX_LINE_BYTES = 64 * 1024


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
        with self.path.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())


def read_history(path: Path) -> History:
    """All that a journal says; an experiment without one has no trials yet.

    Raises:
        InputError: a line in the middle is damaged; names it.
    """
    history = History()
    if not path.exists():
        return history
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError("it is too long")
                history.apply(event_from_dict(json.loads(line, parse_constant=_refuse_constant)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise InputError(
                    f"{path}:{number}: is not an event of a search ({type(error).__name__}: {error}). "
                    f"Restore the file from a copy, or remove that line and those after it."
                ) from None
    return history


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _cut_torn_tail(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
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
