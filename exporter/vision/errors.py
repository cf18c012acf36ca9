"""What pictures and prompts with them can be refused for."""

from lmcast.plugins.errors import InputError


class PictureError(InputError):
    """A picture, a video or a sound, or a prompt with them, that is refused."""
