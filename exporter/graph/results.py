"""What operators of a trace return, said more cheaply than torch works it out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

# Where an operator says what it is made of.
WHOLE = torch._C.DispatchKey.CompositeImplicitAutograd


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    usual = weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    if not usual or (bias is not None and (bias.shape[0], bias.dtype) != (len(weight), x.dtype)):
        return cast(Tensor, torch.ops.aten.linear.default._op_dk(WHOLE, x, weight, bias))
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _rms_norm(
    x: Tensor, sizes: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    last = list(x.shape[-len(sizes) :]) == list(sizes)
    if not last or (weight is not None and (*weight.shape, weight.dtype) != (*sizes, x.dtype)):
        return cast(Tensor, torch.ops.aten.rms_norm.default._op_dk(WHOLE, x, sizes, weight, eps))
    return x.new_empty(x.shape)


# What operators that a program keeps whole return, where only shapes and dtypes count. torch works
# it out by what they are made of, on symbolic shapes: it took four tenths of a trace. What is not
# usual, or an error, is left to it.
RESULTS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.linear.default: _linear,
    torch.ops.aten.rms_norm.default: _rms_norm,
}


@contextmanager
def known_shapes() -> Iterator[None]:
    """Let RESULTS say what its operators return, as kernels in Python that tracing prefers."""
    for operator, result in RESULTS.items():
        operator.py_kernels[WHOLE] = result
        operator._dispatch_cache.clear()
    try:
        yield
    finally:
        for operator in RESULTS:
            del operator.py_kernels[WHOLE]
            operator._dispatch_cache.clear()
