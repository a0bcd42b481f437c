"""JSON files of a run: written in one piece, with the digest of their content; what has changed since is refused."""

import errno
import hashlib
import json
import pathlib

from cifar_jax.errors import InputError
from cifar_jax.files import replace_file

FORMAT_VERSION = 2  # 1 had no digest


def write_json(path: pathlib.Path, content: dict) -> None:
    """Writes {"format_version", **content, "sha256"}: the file appears whole or not at all."""
    value = {"format_version": FORMAT_VERSION, **content}
    replace_file(path, (json.dumps(value | {"sha256": digest(value)}, indent=2) + "\n").encode())


def read_json(path: pathlib.Path) -> dict | None:
    """The content of such a file, or None where it does not exist; raises InputError where it is damaged."""
    try:
        if path.exists() and not path.is_file():  # a FIFO would be waited for
            raise OSError(errno.EINVAL, "no ordinary file")
        value = json.loads(path.read_text())
        version = int(value.pop("format_version"))
        if version > FORMAT_VERSION:
            raise InputError(f"{path}: got format {version}, expected at most {FORMAT_VERSION}; update cifar_jax")
        found = value.pop("sha256", None)
        if version > 1 and found != digest({"format_version": version, **value}):
            raise ValueError("its content does not match its sha256")
        return value
    except FileNotFoundError:
        return None
    except (OSError, OverflowError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def damaged(path: pathlib.Path, error: Exception) -> InputError:
    """What to raise where the content of a file is none that training writes."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return InputError(
        f"{path}: got a damaged file ({reason}), expected what training wrote; restore it from a copy or choose another --workdir"
    )


def digest(value) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys and the white space of its file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
