"""The two ways a command can fail that are not a defect of the program.

Either is printed by run.py as one line, without a traceback.
"""


class InputError(Exception):
    """Bad input: exit code 2, nothing written. One line that says what was got, what was expected and what to do."""


class RunError(Exception):
    """A run that started and could not go on: exit code 1, its last good checkpoint kept."""
