"""Builds the page: `python -m web.build`. From a trained network to web/public (see assets.py), by npm from there to web/dist.

Nothing else of the project needs npm.
"""

import pathlib
import shutil
import subprocess
import sys

from cifar_jax import arguments
from cifar_jax.errors import InputError, RunError
from web.assets import write_assets

WEB = pathlib.Path(__file__).parent


def build(name: str, folder: pathlib.Path = WEB) -> dict:
    """Builds folder/dist with a committed name or a weights file; returns what is said of the network (assets.describe).

    Raises InputError without npm, before anything is written, RunError where npm fails; and as write_assets does.
    """
    if shutil.which("npm") is None:
        raise InputError("npm: found none on the PATH, expected that of Node.js 20.19 or newer; install it to build the page")
    described = write_assets(name, folder / "public")
    for words in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
        code = subprocess.run(["npm", "--prefix", str(folder), *words]).returncode
        if code:
            raise RunError(f"npm {' '.join(words)} in {folder}: exit code {code}; what it said stands above")
    return described


def main(argv) -> int:
    parser = arguments.Parser(prog="python -m web.build", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=arguments.path, default="base", help="a committed name or a weights file")
    described = build(parser.parse_args(argv).weights)
    correct, examples = described["test"]["correct"], described["test"]["examples"]
    print(f"{WEB / 'dist'}: the page of {described['name']}, {correct} of {examples} test images right")
    return 0


if __name__ == "__main__":
    sys.exit(arguments.run(main, sys.argv[1:]))
