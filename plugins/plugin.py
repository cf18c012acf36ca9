"""The record of a custom operator, and the registry of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import onnx.parser
import torch

from lmcast import plugins
from lmcast.plugins.errors import InputError

DOMAIN = "lmcast"
ONNX_OPSET = 24  # of the standard operators that bodies and graphs are written in
HEADER = f'<opset_import: ["" : {ONNX_OPSET}{{more}}], domain: "{DOMAIN}">'


@dataclass(frozen=True)
class Close:
    """Largest accepted difference from eager, per element: atol + rtol * |eager|."""

    atol: float
    rtol: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One operator: everything but `eager` is a claim about `eager`, held to `close`."""

    name: str
    eager: Callable  # the definition
    # The outputs as empty tensors. Eager on fake tensors gives the same, but takes most of a trace.
    shapes: Callable
    # The same in standard operators, as ONNX text: it travels in the file. Where it depends on the
    # attributes, or on which optional tensors are given, a function of all arguments by name; a
    # tensor is there as None where it is absent, as True where it is given.
    body: str | Callable[[Mapping[str, Any]], str]
    kernels: Mapping[str, Callable[[], Callable]] = field(default_factory=dict)
    cases: Callable[[], list[tuple]]  # arguments that the tests run through every backend
    close: Mapping[torch.dtype, Close]  # keyed by the dtype of the first argument

    def __post_init__(self) -> None:
        op = torch.library.custom_op(f"{DOMAIN}::{self.name}", self.eager, mutates_args=())
        op.register_fake(self.shapes)
        REGISTRY[self.name] = self

    def function(self, arguments: Mapping[str, Any]) -> onnx.FunctionProto:
        """Return the body for these arguments (see `body`) as a function of the operator's name."""
        text = self.body if isinstance(self.body, str) else self.body(arguments)
        return parse(text)

    @property
    def schema(self) -> torch.FunctionSchema:
        """The names and kinds of the arguments, as torch read them from `eager`."""
        return getattr(getattr(torch.ops, DOMAIN), self.name).default._schema

    def __call__(self, *args: Any) -> Any:
        """Run the operator as one node that torch.export keeps whole."""
        return getattr(getattr(torch.ops, DOMAIN), self.name)(*args)


def rounded(times: int) -> dict[torch.dtype, Close]:
    """Return the bounds of values near 1 after so many roundings to a dtype, and one of their own.

    Triton's interpreter rounds towards zero.
    """
    short = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
    return {dtype: Close(times * epsilon, epsilon) for dtype, epsilon in short.items()}


def triton(module: str) -> Callable[[], Callable]:
    """Return the loader of the Triton kernel beside an operator's `module` (its `__name__`).

    The kernel takes eager's arguments on a GPU. The loader raises InputError where the triton
    package is missing.
    """

    def load() -> Callable:
        try:
            import_module("triton")
        except ModuleNotFoundError:
            operator = module.rpartition(".")[2]
            raise InputError(
                f"{operator}: its kernel needs the triton package; pip install 'lmcast[triton]'"
            ) from None
        return import_module(f"{module}_triton").launch

    return load


def parse(text: str, *domains: str) -> onnx.FunctionProto:
    """Return ONNX text as a function over the standard operators, and those of `domains`."""
    more = "".join(f', "{domain}" : 1' for domain in domains)
    return onnx.parser.parse_function(HEADER.format(more=more) + text)


REGISTRY: dict[str, Plugin] = {}


def find(name: str) -> Plugin:
    """Return an operator by its name; it registers itself when its file is imported, as here."""
    if name not in REGISTRY:
        families = (f"{__package__}.{m.name}" for m in iter_modules(plugins.__path__) if m.ispkg)
        import_module(next(f"{f}.{name}" for f in families if find_spec(f"{f}.{name}")))
    return REGISTRY[name]
