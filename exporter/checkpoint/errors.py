"""What a checkpoint can be refused for."""

from lmcast.plugins.errors import InputError


class CheckpointError(InputError):
    """A checkpoint that lmcast refuses."""
