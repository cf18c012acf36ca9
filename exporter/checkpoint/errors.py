"""What a checkpoint can be refused for."""

from lmcast.plugins.errors import InputError, printable

LONGEST = 1000  # characters; a hostile name may be megabytes long


class CheckpointError(InputError):
    """A checkpoint that lmcast refuses, in one printable line whatever its names contain."""

    def __init__(self, message: str):
        shown = message if len(message) <= LONGEST else message[:LONGEST] + "..."
        super().__init__(printable(shown))
