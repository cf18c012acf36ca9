"""The errors that are not defects of lmcast; the command line prints them as one line."""

HEAD, TAIL = 1000, 500  # characters of a message that are kept: names can be megabytes long


def printable(message: str) -> str:
    """Return a message as one line that no terminal acts on, whatever names it quotes."""
    return _cut(escaped(_cut(message)))


def escaped(line: str) -> str:
    """Return a line with an escape for whatever a terminal would act on, or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _cut(message: str) -> str:
    if len(message) <= HEAD + TAIL:
        return message
    return f"{message[:HEAD]} ... {message[-TAIL:]}"


class InputError(ValueError):
    """Input that lmcast refuses, in one printable line whatever its names contain; the message
    names the file, key or tensor, and what to do.

    Exit status 2.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class CheckFailed(RuntimeError):
    """Something was checked and is not as it must be; one printable line. Exit status 1."""

    def __init__(self, message: str):
        super().__init__(printable(message))
