"""Rounding within engines, of inputs of products and of caches: the eager model that rounds alike,
and both without rounding.

By a recipe, quantize_input rounds the inputs of products, and attention its cache. Beyond that,
ONNX Runtime's kernels for low-bit weights multiply integers: they round each block of inputs to
int8 by its largest value. Such rounding is part of the arithmetic, as that of fp16 would be: a
value near a tie may go one way in the engine and the other way in eager, and one step of a
low-precision format is far above any bound of fp32.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lmcast.exporter.engine.description import Description, Graph
from lmcast.exporter.engine.graph_file import read_graph
from lmcast.exporter.engine.manifest import Manifest, read_manifest
from lmcast.exporter.graph.assemble import arguments
from lmcast.exporter.graph.lowering import VARIANT
from lmcast.exporter.prove.dequantized import wide_bytes
from lmcast.exporter.prove.in_parts import PART, computed
from lmcast.exporter.runtime.engine import Engine, Variant
from lmcast.graphs import Definition
from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.decoder import TiedHead
from lmcast.graphs.blocks.kv_cache_format import Cache
from lmcast.graphs.blocks.moe import Experts
from lmcast.graphs.blocks.quantized import QuantizedLinear
from lmcast.plugins.attention.cached_attention import cached_attention
from lmcast.plugins.attention.window_attention import window_attention
from lmcast.plugins.experts.moe_experts import eager as experts_eager
from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value
from lmcast.plugins.plugin import DOMAIN, REGISTRY
from lmcast.plugins.quantize.quantize_input import quantize_input, rotated

HOLDING = (cached_attention.name, window_attention.name)
PAST, SCALED = slice(3, 5), 8  # among their inputs: the caches, the scale of keys
FP8 = "float8_e4m3fn"  # as engine.json names it
Got = TypeVar("Got")


def exact_engine(directory: Path, threads: int | None = None) -> Engine:
    """Return an engine whose portable graph rounds neither inputs of products nor keys and
    values to low precision.

    It is loaded without the kernels' own layout of quantized weights: ONNX Runtime 1.31 then
    multiplies with dequantized values, and dequantizes them in every call.
    """
    manifest = read_manifest(directory)
    model = ir.to_proto(exact_graph(manifest)).SerializeToString()
    variant = Variant(model, exact_contract(manifest.about))
    return Engine(directory, threads, portable=True, variant=variant)


def run_exactly(engine: Engine, ask: Callable[[Engine], Got]) -> Got:
    """Return what `ask` makes of the logits of an exact engine, by calls that depend on no logits.

    Weights of more than one part are dequantized once for all calls, a part at a time: in one
    thread, as others would do little but wait for products with single tokens.
    """
    graph = exact_graph(engine.manifest)
    if wide_bytes(graph) > PART:
        return computed(exact_engine(engine.directory, 1), graph, ask)
    return ask(exact_engine(engine.directory, engine.threads))


def exact_graph(manifest: Manifest) -> ir.Model:
    """Return an engine's graph as one that rounds no inputs, where kernels do not.

    Its states are those of `exact_contract`.
    """
    graph = read_graph(manifest)
    without_rounding(graph)
    return graph


def exact_contract(about: Description) -> Graph:
    """Return the contract of the graph with unquantized keys and values."""
    states = (
        dataclasses.replace(s, dtype=about.dtype if s.dtype == FP8 else s.dtype)
        for s in about.graph.states
    )
    return dataclasses.replace(about.graph, states=tuple(states))


def without_rounding(graph: ir.Model) -> bool:
    """Replace bodies of quantize_input by ones that only rotate, and of attention by ones with
    unquantized caches; return whether there were any."""
    found = False
    for node in list(chain(graph.graph, *graph.functions.values())):
        key = node.op_identifier()
        if key[0] == DOMAIN and key[1].partition(VARIANT)[0] in HOLDING and _holds_codes(node):
            found = True
            _hold_numbers(graph, node)
        if key[0] != DOMAIN or key[1].partition(VARIANT)[0] != quantize_input.name:
            continue
        found = True
        function = quantize_input.function(arguments(node), _unrounded)
        function.name = key[1]
        function.overload = key[2]
        graph.functions[key] = function
    return found


def _holds_codes(node: ir.Node) -> bool:
    return len(node.inputs) > SCALED and node.inputs[SCALED] is not None


def _unrounded(
    op: Builder, x: Value, scale: Value | None, format: Attribute, rotation: Attribute
) -> Value:
    """The body of quantize_input without the rounding: the rotation alone."""
    return op.CastLike(rotated(op, op.Cast(x, to=DataType.FLOAT), rotation.value), x)


def _hold_numbers(graph: ir.Model, node: ir.Node) -> None:
    """Give attention its body for unquantized caches; the node keeps its inputs."""
    plugin = REGISTRY[node.op_type.partition(VARIANT)[0]]

    def body(op: Builder, **given: Any) -> Any:
        return plugin.body(op, **{**given, "key_scale": None, "value_scale": None})

    made = plugin.function(arguments(node), body)
    made.name, made.overload = node.op_type, node.overload
    graph.functions[made.identifier()] = made
    computed = graph.graph.outputs[0].type  # of the logits
    states = [*node.inputs[PAST], *node.outputs[1:]]
    states += [v for v in (*graph.graph.inputs, *graph.graph.outputs) if _is_state(v)]
    for value in states:
        assert value is not None
        value.type = computed


def _is_state(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.FLOAT8E4M3FN


def unrounded(found: Definition) -> Definition:
    """Return a definition whose linear layers do not round their inputs, though they rotate
    them, and whose attention has unquantized caches."""
    model = copy.deepcopy(found.model.to("meta"))
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.inputs = dataclasses.replace(module.inputs, format=None)
        elif isinstance(module, Attention):
            module.hold(Cache())
    return dataclasses.replace(found, model=model)


def with_rounding(found: Definition, products: Mapping[str, int]) -> Definition:
    """Return a definition that rounds the inputs of products with these parameters."""
    model = copy.deepcopy(found.model.to("meta"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in list(model.named_modules()):
        own = {"embed.weight": module.embed.weight} if isinstance(module, TiedHead) else dict(
            module.named_parameters(recurse=False)
        )  # fmt: skip
        named = {leaf: names[id(parameter)] for leaf, parameter in own.items()}
        blocks = {leaf: products[name] for leaf, name in named.items() if name in products}
        if blocks and isinstance(module, Experts):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _Experts(module, blocks))
        elif blocks and not isinstance(module, nn.Embedding):
            _round_within(module, blocks)
    return dataclasses.replace(found, model=model)


def _round_within(module: nn.Module, blocks: Mapping[str, int]) -> None:
    """Round the inputs of products with these parameters of a module while it runs."""
    entered: list[ExitStack] = []

    def enter(_: nn.Module, inputs: Any) -> None:
        entered.append(ExitStack())
        entered[-1].enter_context(_RoundedLinear(module, blocks))

    def leave(_: nn.Module, inputs: Any, output: Any) -> None:
        entered.pop().close()

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)


class _Experts(nn.Module):
    """Experts under the same names that round the inputs of both products."""

    def __init__(self, experts: Experts, blocks: Mapping[str, int]):
        super().__init__()
        self.gate, self.up, self.down = experts.gate, experts.up, experts.down
        self.gate_bias, self.up_bias = experts.gate_bias, experts.up_bias
        self.down_bias = experts.down_bias
        self.settings = experts.activation, experts.alpha, experts.limit, experts.scale_input
        self.blocks = blocks

    def forward(self, x: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        with _RoundedLinear(self, self.blocks):
            return experts_eager(
                x, weights, chosen, self.gate, self.up, self.down,
                self.gate_bias, self.up_bias, self.down_bias, *self.settings,
            )  # fmt: skip


class _RoundedLinear(TorchFunctionMode):
    """While active, F.linear rounds its input where the weight is (part of) one of these
    parameters."""

    def __init__(self, module: nn.Module, blocks: Mapping[str, int]):
        super().__init__()
        self.blocks = {_address(module.get_parameter(n)): block for n, block in blocks.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and (block := self.blocks.get(_address(args[1]))):
            args = (rounded(args[0], block), *args[1:])
        return func(*args, **(kwargs or {}))


def _address(tensor: Tensor) -> int:
    """Return the address of a tensor's storage, by which a part of a parameter is recognized."""
    return tensor.untyped_storage().data_ptr()


def rounded(x: Tensor, block: int) -> Tensor:
    """Return x ...,K rounded in blocks: int8 codes with a scale by the largest magnitude of
    each."""
    wide = x.float().unflatten(-1, (-1, block))
    step = wide.abs().amax(-1, keepdim=True) / 127
    near: Tensor = torch.where(step > 0, (wide / step).round(), 0) * step
    return near.flatten(-2).to(x.dtype)
