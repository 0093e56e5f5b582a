"""TensorBoard's event files."""

import time
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar


class EventFile:
    """As much of tensorboardX's `SummaryWriter` as Ray uses, but written at once.

    That one hands events to a thread over a queue of ten: where the thread dies of a full disk, whoever adds the next
    ones waits for ever.

    Args:
        logdir: a folder; gets one more file.
    """

    def __init__(self, logdir: str, **_: Any) -> None:
        # By default its name tells seconds: one begun within the same second would overwrite it.
        self._writer = EventsWriter(str(Path(logdir) / "events"), f".{time.time_ns()}")
        self.file_writer = self

    def add_scalar(self, tag: str, value: float, global_step: int) -> None:
        self.add_summary(scalar(tag, value), global_step)

    def add_summary(self, summary: Any, global_step: int = 0) -> None:
        self._writer.write_event(Event(summary=summary, wall_time=time.time(), step=global_step))

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
