"""The two ways a command can fail that are not a defect of the program.

Either is printed by run.py as one line, without a traceback.
"""


def one_line(error: Exception) -> str:
    """The message, escaped."""
    return escape(str(error))


def escape(text: str) -> str:
    """A stranger's text, such as the name of a file or a class, without what would break a line or steer a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


MOST_CHARACTERS = 2**14  # of what is usual the longest: a path of 4096 bytes, some times


class InputError(Exception):
    """Bad input: exit code 2, nothing written. One line that says what was got, what was expected and what to do.

    What it quotes may come from strangers (names of files, classes, keys): line ends and what else would steer a
    terminal are escaped, and the middle of what is very long is left out.
    """

    def __str__(self):
        text = super().__str__()
        if len(text) > MOST_CHARACTERS:
            text = f"{text[: MOST_CHARACTERS // 2]} … {text[-MOST_CHARACTERS // 2 :]}"
        return escape(text)


class RunError(Exception):
    """A run that started and could not go on: exit code 1, its last good checkpoint kept."""
