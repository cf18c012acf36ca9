"""ONNX Runtime GenAI: rows are padded on the right, and states lie in buffers of the longest row.

Its `decoder` type of models finds states by name. Of growing ones it takes any number of slots,
past_key_values.N.key and .value, which have one shape; of fixed ones one slot a layer,
.recurrent_state (four axes) and .conv_state (three), of one shape in all layers.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from lmcast.exporter.clients.contract import (
    ROWS,
    TOKENS,
    Axis,
    Call,
    Contract,
    Held,
    Port,
    Texts,
    given,
    pairs,
)
from lmcast.plugins.onnx_builder import Builder, Value

if TYPE_CHECKING:
    from lmcast.exporter.engine.description import Description

ROOM = "max_sequence_length"
KEY_VALUE = ("key", "value")


def prologue(op: Builder) -> Call:
    """A row's mask is ones, then zeros, then ones: its padding stays where it was, and what was
    cached before is told by positions alone, also where a mask has columns for all there will be.

    One row of logits, whose axis is a number, tells GenAI that no others are there.
    """
    ids = Value(op, given("input_ids", ROWS, TOKENS))
    mask = Value(op, given("attention_mask", ROWS, "total_sequence_length"))
    positions = Value(op, given("position_ids", ROWS, TOKENS))
    lengths = op.Gather(positions, 0, axis=1)
    counts = op.ReduceSum(mask, [1], keepdims=0) - lengths
    rows = op.Unsqueeze(counts - 1, [1])
    inputs = ids, mask, positions
    return Call(inputs, ids, lengths, counts, rows, op.size(mask, 1), (ROWS, 1))


def ports(held: Sequence[Held], call: Call) -> list[Port]:
    """Return the slots of growing states, then two tensors for each layer with fixed ones."""
    twos = pairs([state for state in held if state.grows])
    found = [
        cache(f"{slot}.{what}", first.axes, first.dtype, state)
        for slot, (first, other) in enumerate(twos)
        for what, state in zip(KEY_VALUE, (first, other), strict=True)
    ]
    if not twos:  # it counts the tokens by a cache
        found += [cache(f"0.{what}", (1, ROOM, 1), ir.DataType.FLOAT) for what in KEY_VALUE]
    layers: dict[str, list[Held]] = {}
    for state in held:
        if not state.grows:
            layers.setdefault(state.layer, []).append(state)
    leads = leading(list(layers.values()))
    rests = [tuple(s for s in states if s not in leads) for states in layers.values()]
    width = max([1, *(sum(map(size, rest)) for rest in rests)])
    dtypes = {state.dtype for rest in rests for state in rest} or {ir.DataType.FLOAT}
    dtype = dtypes.pop() if len(dtypes) == 1 else ir.DataType.FLOAT
    for number, (states, rest) in enumerate(zip(layers.values(), rests, strict=True)):
        lead = next((state for state in states if state in leads), None)
        found += [recurrent(number, lead), flat(number, rest, width, dtype)]
    return found


def leading(layers: Sequence[Sequence[Held]]) -> list[Held]:
    """Return the first state of four axes of each layer, if all layers have one of one kind."""
    firsts = [next((s for s in states if len(s.shape) == 4), None) for states in layers]
    found = [state for state in firsts if state is not None]
    alike = len({(state.shape, state.dtype) for state in found}) == 1
    return found if alike and len(found) == len(layers) else []


def size(state: Held) -> int:
    """Return the numbers of a fixed state in a row."""
    return math.prod(axis for axis in state.shape[1:] if isinstance(axis, int))


def named(slot: str) -> tuple[str, str]:
    return f"past_key_values.{slot}", f"present.{slot}"


def cache(slot: str, like: tuple[Axis, ...], dtype: ir.DataType, state: Held | None = None) -> Port:
    """Return half a slot; where there is no state, one of that shape that stays as it is."""
    heads, _, width = like
    axes = (ROWS, heads, ROOM, width)
    short = state is not None and len(state.shape) == 3

    def split(op: Builder, past: Value) -> list[Value]:
        return [op.Squeeze(past, [1]) if short else past] if state else []

    def join(op: Builder, past: Value, presents: Sequence[Value]) -> Value:
        if not presents:
            return op.Identity(past)
        return op.Unsqueeze(presents[0], [1]) if short else presents[0]

    held = (state,) if state else ()
    return Port(*named(slot), dtype, axes, axes, held, split, join)


def recurrent(layer: int, state: Held | None) -> Port:
    """Return the tensor of four axes of a layer: its state as it is, or nothing."""
    axes = (ROWS, *(state.shape[1:] if state else (1, 1, 1)))

    def split(op: Builder, past: Value) -> list[Value]:
        return [past] if state else []

    def join(op: Builder, past: Value, presents: Sequence[Value]) -> Value:
        return presents[0] if presents else op.Identity(past)

    dtype, held = (state.dtype, (state,)) if state else (ir.DataType.FLOAT, ())
    return Port(*named(f"{layer}.recurrent_state"), dtype, axes, axes, held, split, join)


def flat(layer: int, states: tuple[Held, ...], width: int, dtype: ir.DataType) -> Port:
    """Return the tensor of three axes of a layer: states one behind the other, up to `width`."""
    axes = (ROWS, 1, width)
    used = sum(map(size, states))

    def split(op: Builder, past: Value) -> list[Value]:
        found, start = [], 0
        for state in states:
            end = start + size(state)
            part = past if end - start == width else op.slice(past, 2, [start], [end])
            sizes = op.dims(op.size(past, 0), *(int(axis) for axis in state.shape[1:]))
            shaped = op.Reshape(part, sizes, allowzero=1)  # a convolution of one tap carries none
            found.append(shaped if state.dtype == dtype else op.Cast(shaped, to=state.dtype))
            start = end
        return found

    def join(op: Builder, past: Value, presents: Sequence[Value]) -> Value:
        parts = [
            op.Reshape(value if state.dtype == dtype else op.Cast(value, to=dtype), [0, 1, -1])
            for state, value in zip(states, presents, strict=True)
            if size(state)
        ]
        if used < width:
            parts.append(op.slice(past, 2, [used], [width]))
        return op.Identity(parts[0]) if len(parts) == 1 else op.Concat(*parts, axis=2)

    return Port(*named(f"{layer}.conv_state"), dtype, axes, axes, states, split, join)


def refuse(held: Sequence[Held], about: "Description") -> str:
    """Say why GenAI does not open an engine, '' where it does: it wants an id below the vocabulary
    that ends a text, and would take 0 where none is given."""
    return "" if about.eos_ids else "the checkpoint names no token that ends a text"


def files(about: "Description", found: Sequence[Port], texts: Texts) -> Mapping[str, Any]:
    return {"genai_config.json": config(about, found, texts.ids)}


def config(about: "Description", found: Sequence[Port], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return genai_config.json: what GenAI allocates, and how it opens a session."""
    slots = [port for port in found if port.past.endswith(".key")]
    _, heads, _, width = slots[0].before
    names = {
        f"{side}_{what}_names": f"{name}.%d.{what}"
        for side, name in (("past", "past_key_values"), ("present", "present"))
        for what in KEY_VALUE
    }
    model = {
        "type": "decoder",
        "vocab_size": about.vocab_size,
        "context_length": about.context,
        "eos_token_id": list(about.eos_ids),
        "pad_token_id": padding(about, ids),
        "decoder": {
            "filename": contract.graph,
            "head_size": width,
            "hidden_size": about.config.get("hidden_size", 0),
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "num_hidden_layers": len(slots),
            "session_options": session_options(about),
            "inputs": {n: n for n in ("input_ids", "attention_mask", "position_ids")}
            | {key: value for key, value in names.items() if key.startswith("past")},
            "outputs": {"logits": "logits"}
            | {key: value for key, value in names.items() if key.startswith("present")},
        },
    }
    if "bos_token" in ids:
        model["bos_token_id"] = ids["bos_token"]
    search = {
        "do_sample": False,
        "max_length": about.context,
        "num_beams": 1,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def padding(about: "Description", ids: Mapping[str, int]) -> int:
    """Return an id for padding with which no prompt ends: GenAI counts a row's tokens from the
    last that is another."""
    ends = {*about.eos_ids}
    named = [ids[name] for name in ("pad_token", "unk_token", "bos_token") if name in ids]
    return next((id for id in named if id not in ends), about.vocab_size - 1)


def session_options(about: "Description") -> dict[str, Any]:
    """Return what is asked of ONNX Runtime, as our own sessions do; see backends/onnxruntime.py."""
    options: dict[str, Any] = {"log_id": "onnxruntime-genai", "provider_options": []}
    graph = about.graph
    if graph.optimized:
        level = "ORT_ENABLE_BASIC" if graph.folded else "ORT_DISABLE_ALL"
        options["graph_optimization_level"] = level
    else:
        options["session.disable_quant_qdq"] = "1"
    if graph.split_experts:
        options["enable_mem_pattern"] = False
    if graph.total_length:
        options["provider_options"] = [{"cuda": {}}]
    return options


contract = Contract(
    name="genai",
    about="ONNX Runtime GenAI",
    graph="genai.onnx",
    prologue=prologue,
    ports=ports,
    grows=False,
    crowded="needs_past_present_share_buffer_and_no_beams",
    lengthens=True,
    refuse=refuse,
    files=files,
)
