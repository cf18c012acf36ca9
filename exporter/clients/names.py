"""Names of other programs, as options have them; light, as the command line reads it."""

from typing import Literal, get_args

Client = Literal["genai", "hub", "js"]  # `parity --client` runs their graphs
Program = Literal[Client, "triton"]  # `pack --for` writes what they open
CLIENTS: tuple[Client, ...] = get_args(Client)
PROGRAMS: tuple[Program, ...] = get_args(Program)
