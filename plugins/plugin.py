"""The record of a custom operator, and the registry of all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

import onnx_ir as ir
import torch

from lmcast import plugins
from lmcast.plugins.errors import InputError
from lmcast.plugins.onnx_builder import ONNX_OPSET, Attribute, Block, Builder, Value

DOMAIN = "lmcast"
ATTRIBUTES = {
    "float": ir.AttributeType.FLOAT,
    "int": ir.AttributeType.INT,
    "bool": ir.AttributeType.INT,
    "str": ir.AttributeType.STRING,
}


# What a result jumps by: scores ...,N, and how many of the largest are taken.
Selection = tuple[torch.Tensor, int]


@dataclass(frozen=True)
class Close:
    """Largest accepted difference from eager, per element: atol + rtol * |eager|."""

    atol: float
    rtol: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """One operator: everything but `eager` is a claim about `eager`, held to `close`."""

    name: str
    eager: Callable[..., Any]  # the definition
    # The outputs as empty tensors. Eager on fake tensors gives the same, but takes most of a trace.
    shapes: Callable[..., Any]
    # The same in standard operators: it travels in the file. It takes a Builder, then the arguments
    # of `eager` by name, tensors as Value or None, all else as Attribute; it returns the outputs.
    body: Block
    kernels: Mapping[str, Callable[[], Callable[..., Any]]] = field(default_factory=dict)
    # Of an operator that takes the best of some: (arguments of `eager`) -> by what. Where two are
    # nearly equal, rounding alone decides which is taken.
    selections: Callable[..., list[Selection]] | None = None
    cases: Callable[[], list[tuple[Any, ...]]]  # arguments that the tests run through every backend
    close: Mapping[torch.dtype, Close]  # keyed by the dtype of the first argument

    def __post_init__(self) -> None:
        op = torch.library.custom_op(f"{DOMAIN}::{self.name}", self.eager, mutates_args=())
        op.register_fake(self.shapes)
        REGISTRY[self.name] = self

    def function(self, arguments: Mapping[str, Any], body: Block | None = None) -> ir.Function:
        """Return the body for these arguments as a function of the operator's name.

        arguments: by name; a tensor is None where it is absent, anything else where it is given.
        body: in place of the operator's own. A tensor that is absent is an input only where one
        behind it is given.
        """
        op, last = Builder(), 0
        inputs: list[ir.Value] = []
        given: dict[str, Value | Attribute | None] = {}
        for argument in self.schema.arguments:
            name, value = argument.name, arguments[argument.name]
            kind = ATTRIBUTES.get(str(argument.type))
            if kind is not None:
                given[name] = Attribute(name, kind, value)
                continue
            inputs.append(op.input(name).ir)
            given[name] = None if value is None else Value(op, inputs[-1])
            last = last if value is None else len(inputs)
        outputs = op.outputs((body or self.body)(op, **given))
        domains = {"": ONNX_OPSET, **op.domains}
        graph = ir.Graph(
            inputs[:last], outputs, nodes=op.nodes, name=self.name, opset_imports=domains
        )
        for node in reversed(graph):  # what no output depends on
            if not any(value.uses() or value in outputs for value in node.outputs):
                graph.remove(node, safe=True)
        names = [name for name, value in given.items() if isinstance(value, Attribute)]
        declared = [ir.Attr(name, ir.AttributeType.UNDEFINED, None) for name in names]
        return ir.Function(DOMAIN, self.name, graph=graph, attributes=declared)

    @property
    def schema(self) -> torch.FunctionSchema:
        """The names and kinds of the arguments, as torch read them from `eager`."""
        schema: torch.FunctionSchema
        schema = getattr(getattr(torch.ops, DOMAIN), self.name).default._schema
        return schema

    def __call__(self, *args: Any) -> Any:
        """Run the operator as one node that torch.export keeps whole."""
        return getattr(getattr(torch.ops, DOMAIN), self.name)(*args)


def rounded(times: int) -> dict[torch.dtype, Close]:
    """Return the bounds of values near 1 after this many roundings to a dtype, plus one of their
    own.

    Triton's interpreter rounds towards zero.
    """
    short = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
    return {dtype: Close(times * epsilon, epsilon) for dtype, epsilon in short.items()}


def triton(module: str) -> Callable[[], Callable[..., Any]]:
    """Return the loader of the Triton kernel beside an operator's `module` (its `__name__`).

    The kernel takes eager's arguments on a GPU. The loader raises InputError where the triton
    package is missing.
    """

    def load() -> Callable[..., Any]:
        try:
            import_module("triton")
        except ModuleNotFoundError:
            operator = module.rpartition(".")[2]
            raise InputError(
                f"{operator}: its kernel needs the triton package; pip install 'lmcast[triton]'"
            ) from None
        launch: Callable[..., Any] = import_module(f"{module}_triton").launch
        return launch

    return load


REGISTRY: dict[str, Plugin] = {}


def find(name: str) -> Plugin:
    """Return an operator by its name; it registers itself when its file is imported, as here."""
    if name not in REGISTRY:
        families = (f"{__package__}.{m.name}" for m in iter_modules(plugins.__path__) if m.ispkg)
        import_module(next(f"{f}.{name}" for f in families if find_spec(f"{f}.{name}")))
    return REGISTRY[name]
