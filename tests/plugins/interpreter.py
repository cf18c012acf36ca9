"""Triton's interpreter, as of 3.9, made right for bfloat16 and quicker for functions of kernels."""

from functools import cache
from typing import Any

from triton import language
from triton.runtime import interpreter

GRID = interpreter.GridExecutor.__call__
DOT = interpreter.InterpreterBuilder.create_dot
prepared: set[frozenset[str]] = set()  # by modules of the language, since the last kernel began


def improve() -> None:
    """Change the interpreter of this process."""
    interpreter.GridExecutor.__call__ = run
    interpreter.InterpretedFunction.__call__ = call
    interpreter.InterpreterBuilder.create_dot = dot


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
