"""Where this machine keeps files for all runs; files that appear whole or not at all, and stay whole when the power goes."""

import os
import pathlib


def default_cache_dir() -> str:
    """Returns $CIFAR_JAX_CACHE, else $XDG_CACHE_HOME/cifar_jax, else ~/.cache/cifar_jax; it need not exist."""
    if chosen := os.environ.get("CIFAR_JAX_CACHE"):
        return os.path.abspath(os.path.expanduser(chosen))
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(root, "cifar_jax")


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
