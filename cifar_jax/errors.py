"""The two ways a command can fail that are not a defect of the program.

Either is printed by run.py as one line, without a traceback.
"""


def one_line(error: Exception) -> str:
    """The message with what would break the line, such as a line feed in the name of a file, written as an escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))


class InputError(Exception):
    """Bad input: exit code 2, nothing written. One line that says what was got, what was expected and what to do."""


class RunError(Exception):
    """A run that started and could not go on: exit code 1, its last good checkpoint kept."""
