"""What torch.export works out for others, and nothing here reads: a fifth of a trace, and more."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def nothing_unread() -> Iterator[None]:
    """Let a trace leave out what only other users of its programs read."""
    # Here, as torch.export does: importing these takes a second.
    from torch._dynamo import config
    from torch.fx.experimental import proxy_tensor
    from torch.fx.experimental.symbolic_shapes import DimConstraints

    with ExitStack() as stack:
        # The results of operators on symbolic shapes are hardly ever met again: keeping them took
        # more than a quarter of a trace.
        stack.enter_context(config.patch(fake_tensor_cache_enabled=False))
        # The lines of Python that nodes come from: a tenth.
        _replace(stack, torch.fx.config, "do_not_emit_stack_traces", lambda _: True)
        # In which layouts a result is contiguous, three questions of symbolic shapes: an eighth.
        _replace(
            stack,
            proxy_tensor,
            "_extract_tensor_metadata",
            lambda whole: partial(whole, include_contiguity=False),
        )
        # Ranges of sizes, solved for the message about a Dim that cannot be; all are Dim.AUTO: a
        # seventh.
        _replace(stack, DimConstraints, "solve", lambda _: lambda constraints: None)
        yield


def _replace(stack: ExitStack, owner: Any, name: str, by: Callable[[Any], Any]) -> None:
    """Put something in the place of an attribute until a stack is left."""
    before = getattr(owner, name)
    setattr(owner, name, by(before))
    stack.callback(setattr, owner, name, before)
