"""The errors that are not defects of lmcast; the command line prints them as one line."""


class InputError(ValueError):
    """Input that lmcast refuses; the message names the file, key or tensor, and what to do.

    Exit status 2.
    """


class CheckFailed(RuntimeError):
    """Something was checked and is not as it must be. Exit status 1."""
