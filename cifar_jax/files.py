"""Files that appear whole or not at all, and stay whole when the power goes."""

import os
import pathlib


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Writes a file beside its final place, brings it onto the disk, and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync(path.parent)


def sync(path: pathlib.Path) -> None:
    """Brings a file or the entries of a folder onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
