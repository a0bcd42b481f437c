"""TensorBoard's event files, through its own messages: appended at once, so that no thread or buffer outlives an error."""

import errno
import io
import os
import pathlib
import socket
import time

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def create_events(folder: pathlib.Path, first_step: int) -> pathlib.Path:
    """Makes a new event file; what earlier files of the folder hold from `first_step` on no longer counts."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}"
    while path.exists():  # resumed within a second
        path = path.with_name(path.name + "_")
    _append(path, [{"file_version": "brain.Event:2"}, {"step": first_step, "session_log": SessionLog(status=SessionLog.START)}])
    return path


def append_scalars(path: pathlib.Path, step: int, scalars: dict[str, float]) -> None:
    """Adds a point to the curve of each name."""
    points = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
    _append(path, [{"step": step, "summary": Summary(value=points)}])


def _append(path, events) -> None:
    records = io.BytesIO()
    writer = RecordWriter(records)
    for fields in events:
        writer.write(Event(wall_time=time.time(), **fields).SerializeToString())
    content = records.getvalue()
    with path.open("ab", buffering=0) as file:
        written = file.write(content)
    if written < len(content):  # a disk that is almost full takes a part and says nothing; what follows that is unreadable
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
