"""The errors that are not defects of lmcast; the command line prints them as one line."""


def printable(message: str) -> str:
    """Return a message as one line that no terminal acts on, whatever names it quotes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


class InputError(ValueError):
    """Input that lmcast refuses; the message names the file, key or tensor, and what to do.

    Exit status 2.
    """


class CheckFailed(RuntimeError):
    """Something was checked and is not as it must be. Exit status 1."""
