"""Triton's interpreter, as of 3.9, made right for bfloat16 and quicker for functions of kernels."""

import operator
from functools import cache
from math import prod
from typing import Any

import numpy as np
from triton import language
from triton.language import core, semantic
from triton.runtime import interpreter

GRID = interpreter.GridExecutor.__call__
DOT = interpreter.InterpreterBuilder.create_dot
NUMPY = interpreter._get_np_dtype
BLOCK = core.block_type.__init__
prepared: set[frozenset[str]] = set()  # by modules of the language, since the last kernel began


def improve() -> None:
    """Change the interpreter of this process."""
    interpreter.GridExecutor.__call__ = run
    interpreter.InterpretedFunction.__call__ = call
    interpreter.InterpreterBuilder.create_dot = dot
    # Of each value the interpreter works out anew what type and shape say: a third of its time.
    interpreter._get_np_dtype = numpy_dtype
    core.block_type.__init__ = block
    core.tensor.__init__ = tensor
    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = require_no_overflow


def run(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a kernel."""
    prepared.clear()
    prepared.add(modules(self.fn))
    return GRID(self, *args, **kwargs)


def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function of a kernel.

    For each such call the interpreter puts its own functions in place of the language's, although
    that has been done for the kernel: a third of the time of ours.
    """
    if modules(self.fn) not in prepared:
        prepared.add(modules(self.fn))
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*args, **kwargs)


@cache
def modules(function: Any) -> frozenset[str]:
    """Return through which modules a function sees the language, by their names."""
    seen = function.__globals__.values()
    return frozenset(m.__name__ for m in (language, language.core) if any(v is m for v in seen))


def dot(self: Any, *operands: Any) -> Any:
    """Multiply; the interpreter takes the bits of bfloat16 as integers (its issue 11584)."""
    first, second, *rest = operands
    if first.dtype == language.bfloat16:
        first, second = (self.create_fp_to_fp(x, language.float32, None) for x in operands[:2])
    return DOT(self, first, second, *rest)


EXACT = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}


def require_no_overflow(self: Any, left: Any, right: Any, function: Any) -> None:
    """Raise OverflowError where a sum, a difference or a product exceeds its type.

    The interpreter computes whether, by operators of the language, a fifth of its time; and looks
    at the answer in debug mode alone.
    """
    kind = left.dtype
    if kind.int_bitwidth < 64:
        wide = (x.handle.data.astype(np.int64) for x in (left, right))
        found = EXACT[function.__name__](*wide)
        low, high = kind.get_int_min_value(), kind.get_int_max_value()
        if found.size and not (low <= found.min() and found.max() <= high):
            raise OverflowError(f"{function.__name__} of {kind}: {found.min()} to {found.max()}")


numpy_dtypes: dict[str, Any] = {}  # by names of scalar types, which are what Triton tells apart


def numpy_dtype(kind: Any) -> Any:
    """Return the dtype of NumPy in which values of a type of Triton are kept."""
    scalar = kind.scalar
    if scalar.name not in numpy_dtypes:
        numpy_dtypes[scalar.name] = NUMPY(scalar)
    return numpy_dtypes[scalar.name]


blocks: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # by sizes and the name of the scalar type


def block(self: Any, element_ty: Any, shape: Any) -> None:
    """Make the type of a block, whose sizes are validated once."""
    sizes = tuple([n.value if type(n) is core.constexpr else n for n in shape])
    key = (*sizes, element_ty.name)
    if key not in blocks or any(type(n) is not int for n in sizes):
        BLOCK(self, element_ty, shape)
        blocks[key] = (self.shape, self.numel, self.name)
    self.element_ty = element_ty
    self.shape, self.numel, self.name = blocks[key]


@cache
def sizes_of(shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Return the shape and the number of elements of a value as the language has them."""
    return core.tuple([core.constexpr(n) for n in shape]), core.constexpr(prod(shape))


def tensor(self: Any, handle: Any, type: Any) -> None:
    """Make a value of the language."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = sizes_of(type.shape if type.is_block() else ())
