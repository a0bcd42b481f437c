"""TensorBoard's event files, through tensorboardX's messages: appended at once, so that no thread or buffer outlives an error."""

import errno
import os
import pathlib
import socket
import struct
import time


def create_events(folder: pathlib.Path, first_step: int) -> pathlib.Path:
    """Makes a new event file; what earlier files of the folder hold from `first_step` on no longer counts."""
    from tensorboardX.proto.event_pb2 import SessionLog

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}"
    while path.exists():  # resumed within a second
        path = path.with_name(path.name + "_")
    _append(path, [{"file_version": "brain.Event:2"}, {"step": first_step, "session_log": SessionLog(status=SessionLog.START)}])
    return path


def append_scalars(path: pathlib.Path, step: int, scalars: dict[str, float]) -> None:
    """Adds a point to the curve of each name."""
    from tensorboardX.summary import scalar

    _append(path, [{"step": step, "summary": scalar(name, value)} for name, value in scalars.items()])


def _append(path, events) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    content = b""
    for fields in events:
        data = Event(wall_time=time.time(), **fields).SerializeToString()
        size = struct.pack("<Q", len(data))
        content += size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))
    with path.open("ab", buffering=0) as file:
        written = file.write(content)
    if written < len(content):  # a disk that is almost full takes a part and says nothing; what follows that is unreadable
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
