"""The contract of Hugging Face's programs: optimum, transformers.js, and ten lines of numpy.

Rows are padded on the left, and a cache is as long as the tokens were. States are
past_key_values.N.key and .value; their axes but for the rows are symbolic, as optimum guesses heads
and width of the first, empty ones, and transformers.js makes 0 of what it does not know. So they
come empty at first, also those that are fixed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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
    two_by_two,
    zeros,
)
from lmcast.plugins.onnx_builder import Builder, DataType, Value

if TYPE_CHECKING:
    from lmcast.exporter.engine.description import Description

PAST, TOTAL = "past_sequence_length", "past_sequence_length + sequence_length"
SLOT = "past_key_values"
NUMPY = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)


def prologue(op: Builder) -> Call:
    """The last columns of the mask are those of the call. Tokens that it keeps are moved to the
    front of their row, where the engine has them, and logits back, wherever padding was; that of
    padding has the logits of the last token before it."""
    ids = Value(op, given("input_ids", ROWS, TOKENS))
    mask = Value(op, given("attention_mask", ROWS, TOTAL))
    positions = Value(op, given("position_ids", ROWS, TOKENS))  # is what they expect, and not read
    tokens, total = op.size(ids, 1), op.size(mask, 1)
    recent = op.slice(mask, 1, total - tokens, total)
    counts = op.ReduceSum(recent, [1], keepdims=0)
    lengths = op.ReduceSum(mask, [1], keepdims=0) - counts
    _, places = op.TopK(recent * tokens - op.range(tokens), tokens, axis=1)  # kept ones, in order
    moved = op.GatherElements(ids, places, axis=1)
    rows = op.Max(op.CumSum(recent, 1) - 1, 0)
    inputs = ids, mask, positions
    return Call(inputs, moved, lengths, counts, rows, total, (ROWS, TOKENS))


def ports(held: Sequence[Held], call: Call) -> list[Port]:
    """Return slots of two states each: first of those that grow, by whose first the programs count
    the tokens, then of the others."""
    twos = pairs([state for state in held if state.grows])
    twos += two_by_two([state for state in held if not state.grows])
    return [
        carried(f"{slot}.{what}", state, call)
        for slot, pair in enumerate(twos)
        for what, state in zip(("key", "value"), pair, strict=True)
    ]


def carried(slot: str, state: Held | None, call: Call) -> Port:
    """Return half a slot; nothing, in four axes, where there is no state."""
    symbolic: tuple[Axis, ...] = tuple(f"{axis}_{slot}" for axis in ("heads", "slots", "width"))
    names = f"{SLOT}.{slot}", f"present.{slot}"
    if state is None:
        return nothing(*names, (ROWS, *symbolic))
    if state.grows:
        symbolic = (symbolic[0], PAST, symbolic[2])
    after = tuple(axis if isinstance(axis, int) else TOTAL for axis in state.axes)

    def split(op: Builder, past: Value) -> list[Value]:
        rows = op.size(call.input_ids, 0)
        if not state.grows:
            return [full(op, past, state, rows)]
        cached = call.total - op.size(call.input_ids, 1)
        sizes = [axis if isinstance(axis, int) else cached for axis in state.shape[1:]]
        return [op.Reshape(past, op.dims(rows, *sizes), allowzero=1)]

    def join(op: Builder, past: Value, presents: Sequence[Value]) -> Value:
        (present,) = presents
        added = list(range(1, 5 - len(state.shape)))
        return op.Unsqueeze(present, added) if added else present

    return Port(*names, state.dtype, (ROWS, *symbolic), (ROWS, *after), (state,), split, join)


def nothing(past: str, present: str, axes: tuple[Axis, ...]) -> Port:
    def join(op: Builder, given: Value, presents: Sequence[Value]) -> Value:
        return op.Expand(0.0, op.dims(op.size(given, 0), 1, 1, 1))

    return Port(past, present, DataType.FLOAT, axes, (ROWS, 1, 1, 1), (), lambda op, _: [], join)


def full(op: Builder, past: Value, state: Held, rows: Value) -> Value:
    """Return a fixed state: zeros where it comes empty."""
    sizes = [axis for axis in state.shape[1:] if isinstance(axis, int)]
    numbers = op.Reshape(past, [-1])
    missing = rows * math.prod(sizes) - op.Shape(numbers)
    whole = op.Concat(numbers, zeros(op, missing, state.dtype), axis=0)
    return op.Reshape(whole, op.dims(rows, *sizes), allowzero=1)


def refuse(held: Sequence[Held], about: "Description") -> str:
    strange = [state for state in held if state.dtype not in NUMPY]
    if strange:
        return f"{strange[0].name} is held in {strange[0].dtype.name}, which they do not carry"
    return ""


def files(about: "Description", found: Sequence[Port], texts: Texts) -> Mapping[str, Any]:
    made: dict[str, Any] = {"config.json": config(about, found, texts.ids)}
    if texts.tokenizer:
        tokens = dict(about.special_tokens)
        if "pad_token" not in tokens and "eos_token" in tokens:
            tokens["pad_token"] = tokens["eos_token"]
        made["special_tokens_map.json"] = tokens
        made["tokenizer_config.json"] = {
            **tokens,
            **chat(texts.templates),
            "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json says all there is
            "clean_up_tokenization_spaces": False,
            # Without these there is a third, token_type_ids, which no graph takes.
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": about.context,
            "padding_side": "left",
        }
    return made


def chat(templates: Mapping[str, str]) -> dict[str, Any]:
    """Return chat templates for transformers.js, which looks for them in tokenizer_config.json."""
    if not templates:
        return {}
    named = [{"name": name, "template": text} for name, text in sorted(templates.items())]
    return {"chat_template": templates["default"] if [*templates] == ["default"] else named}


def heads_of(found: Sequence[Port]) -> tuple[int, int]:
    """Return heads and width of the first cache, (1, 1) where no state grows."""
    for state in found[0].held:
        if state.grows:
            heads, width = (axis for axis in state.axes if isinstance(axis, int))
            return heads, width
    return 1, 1


def config(about: "Description", found: Sequence[Port], ids: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json: what the programs read of one, which is how many slots there are.

    All of them know the type llama, and with it read nothing that is not here; that of the
    checkpoint may be unknown to them, or tell them of other states. It is in engine.json, whole.
    """
    heads, width = heads_of(found)
    ends = list(about.eos_ids)
    made = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": about.vocab_size,
        "hidden_size": heads * width,
        "head_dim": width,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": (len(found) + 1) // 2,
        "max_position_embeddings": about.context,
        "bos_token_id": ids.get("bos_token"),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids.get("pad_token", ids.get("eos_token")),
        "torch_dtype": about.dtype,
        "use_cache": True,
        "transformers.js_config": {"dtype": "fp32"},  # the suffix of the file: none
        "lmcast_architecture": about.architecture,
    }
    return made


contract = Contract(
    name="hub",
    about="optimum, transformers.js, ONNX Runtime alone",
    graph="model.onnx",
    prologue=prologue,
    ports=ports,
    grows=True,
    refuse=refuse,
    files=files,
)
