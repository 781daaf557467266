"""A run's metrics as TensorBoard's event files, by tensorboardX."""

# Protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary


class TensorBoardWriter:
    """Scalars "KIND/NAME" in a new event file of a directory.

    Events are written by the caller's thread. A `SummaryWriter` has a thread of its own, which ends
    at a full disk; its queue fills then, and the run waits for ever.
    """

    def __init__(self, directory: Path, *, first: int):
        """
        Args:
            first: the step that a run goes on at; TensorBoard drops what earlier files say of later
                steps.
        """
        self._directory, self._first = directory, first
        self._events: EventsWriter | None = None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        scalars = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float)
        ]
        self._event(Summary(value=scalars), step)

    def write_pictures(self, step: int, paths: Sequence[Path]) -> None:
        pictures = []
        for path in paths:
            with PIL.Image.open(path) as image:
                width, height = image.size
            picture = Summary.Image(
                width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
            )
            pictures.append(Summary.Value(tag=f"samples/{path.stem}", image=picture))
        self._event(Summary(value=pictures), step)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _event(self, summary: Summary, step: int) -> None:
        if self._events is None:
            self._events = self._new_file()
        self._events.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._events.flush()

    def _new_file(self) -> EventsWriter:
        self._directory.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(self._directory / "events"), filename_suffix=f".{os.getpid()}")
        if self._first:
            start = SessionLog(status=SessionLog.START)
            events.write_event(Event(wall_time=time.time(), step=self._first, session_log=start))
        return events
