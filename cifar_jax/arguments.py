"""Command lines: a parser whose complaints are InputErrors, and the types of flags. Overrides of a config pass through."""

import argparse
import os
import pathlib
import re
import shlex
import signal
import sys

from cifar_jax.errors import InputError, RunError, escape, one_line

_ROOT = pathlib.Path(__file__).parent.parent

# What argparse says, and the same in the words of our other messages.
_REWORDED = (
    (r"argument (\S+): expected one argument", r"\1: got no value, expected one"),
    (r"argument (\S+): ignored explicit argument (.*)", r"\1: got the value \2, expected none"),
    (r"argument (\S+): invalid choice: (.*) \(choose from (.*)\)", r"\1: got \2, expected one of \3"),
    (r"argument (\S+): got (.*)", r"\1: got \2"),
    (r"the following arguments are required: VERB", "got no VERB, expected one, or --config FILE to train"),
    (r"the following arguments are required: (.*)", r"got no \1, expected it"),
    (r"unrecognized arguments: (.*)", r"\1: unknown argument"),
)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, through InputError. A description of several lines, a module's header, stands as it is."""

    def __init__(self, description: str = "", **options):
        formatter = argparse.RawDescriptionHelpFormatter if "\n" in description else argparse.HelpFormatter
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False, **options)

    def error(self, message):
        for pattern, words in _REWORDED:
            message = re.sub(f"^{pattern}$", words, message)
        raise InputError(f"{message}; see {self.prog} --help")


def parse(parser: argparse.ArgumentParser, argv: list[str]):
    """Returns (flags, overrides): the arguments --config.key=value, as they are. Refuses any other that is not a flag's."""
    flags, overrides = parser.parse_known_args(argv)
    for text in overrides:
        if not text.startswith("--config."):
            verb = f" {flags.verb}" if "verb" in flags else ""
            raise InputError(
                f"{shlex.quote(text)}: unknown argument; see {parser.prog}{verb} --help; overrides are --config.key=value"
            )
    return flags, overrides


def run(main, argv: list[str]) -> int:
    """main(argv) as a command, and its exit code: bad input, or a module that main imports and does not find, is a line
    and 2, what breaks off one and 1, Ctrl-C one and 130.
    """
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT
    except ModuleNotFoundError as error:
        if "." in (error.name or "."):  # a part of a package that is there: a defect, or another version of it
            raise
        print(f"error: {_describe_missing(error.name)}", file=sys.stderr)
        return 2


def _describe_missing(module: str) -> str:
    """What to do where a module is not installed, which is one of the package's dependencies or one that benchmarks want."""
    wanted = {"torch": ["-e", f"{_ROOT}[torch]"], "grain": ["grain"]}.get(module, ["-e", str(_ROOT)])
    install = shlex.join([sys.executable, "-m", "pip", "install", *wanted])
    return f"got a Python without the module {escape(module)}, expected one that has it; {escape(install)}, or start another"


def path(text: str) -> str:
    """The type of a flag that names a file or folder; ~ is the home directory, also where the shell has left it."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty name, expected that of a file or folder")
    return os.path.expanduser(text)


def whole(low: int):
    """The type of a flag that is a whole number, `low` or more."""

    def read(text: str) -> int:
        try:
            if (value := int(text)) >= low:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number, {low} or more")

    return read


def seeds(text: str) -> list[int]:
    """The type of a flag that lists seeds: whole numbers between commas, none of them twice."""
    read = whole(0)
    try:
        found = [read(word) for word in text.split(",")]
    except argparse.ArgumentTypeError:
        found = []
    if not found or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected whole numbers between commas, none twice, such as 0,1,2")
    return found
