"""What a folder held when it was whole: the SHA-256 of every file in it, in a file that is written last.

A folder without that file is incomplete. The format is that of sha256sum: `sha256sum -c manifest.sha256` checks it, too.
"""

import hashlib
import pathlib

from cifar_jax.files import replace_file, sync

NAME = "manifest.sha256"


def write(folder: pathlib.Path) -> None:
    """Brings the files of a folder onto the disk, then writes its manifest, in one piece."""
    for path in (*folder.rglob("*"), folder.parent):
        sync(path)
    replace_file(folder / NAME, _list(folder))


def is_complete(folder: pathlib.Path) -> bool:
    """Whether the manifest was written."""
    return (folder / NAME).is_file()  # a FIFO would be waited for


def find_damage(folder: pathlib.Path) -> str:
    """ "" where every file is as the manifest says and none is missing or new, else the first difference, in words."""
    try:
        stored = (folder / NAME).read_bytes()
        found = _list(folder)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    if stored == found:
        return ""
    before, now = _parse(stored), _parse(found)
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            return f"{folder / name} has changed since it was written"
    for name in sorted(before.keys() - now.keys()):
        return f"{folder / name} is missing"
    return f"{folder / NAME} does not list what is there"


def _files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / NAME]


def _list(folder) -> bytes:
    lines = []
    for path in _files(folder):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines).encode()


def _parse(text: bytes) -> dict:
    return {line[66:]: line[:64] for line in text.decode(errors="replace").splitlines()}
