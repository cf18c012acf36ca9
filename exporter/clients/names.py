"""Names of the programs that an engine is packed for; light, as the command line reads it."""

from typing import Literal, get_args

Program = Literal["genai", "hub", "js", "triton"]
PROGRAMS: tuple[Program, ...] = get_args(Program)
