"""The record of an architecture of GGUF: how its keys and tensors become Hugging Face's."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmcast.exporter.checkpoint.gguf.decode import (
    LOG_NEGATIVE,
    MINUS_ONE,
    Step,
    halves,
    matrices,
    stored,
    viewed,
)
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import Model
from lmcast.exporter.checkpoint.tensors import StoredTensor

Steps = Callable[[Model], tuple[Step, ...]]
Shape = Callable[[Model], tuple[int, ...]]


def unchanged(_: Model) -> tuple[Step, ...]:
    return ()


@dataclass(frozen=True)
class To:
    """One tensor under another name.

    name: of the tensor; of its module where the table's key names no '.weight' or '.bias' either.
    steps: what is undone. shape: how the axes divide in Hugging Face, of plain numbers alone.
    each: whether it is a stack, whose members have names of their own, counted by '{e}'.
    """

    name: str
    steps: Steps = unchanged
    shape: Shape | None = None
    each: bool = False

    def tensors(self, m: Model, entry: Entry, prefix: str, suffix: str) -> list[StoredTensor]:
        """Return what Hugging Face has of a tensor; raises ValueError for an unfit shape."""
        name, steps = f"{prefix}{self.name}{suffix}", self.steps(m)
        if self.each:
            return matrices(name, entry, steps)
        return [stored(name, viewed(entry, *self.shape(m)) if self.shape else entry, steps)]


@dataclass(frozen=True)
class Join:
    """Several tensors of one layer that Hugging Face has in other pieces.

    parts: their names within a layer ('attn_k_b.weight'), all of which must be there if one is.
    make: the model, the prefix of Hugging Face's names and the tensors -> what they become; raises
    ValueError for an unfit shape.
    """

    parts: tuple[str, ...]
    make: Callable[..., Iterable[StoredTensor]]


Names = Mapping[str, str | To]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One architecture: what general.architecture says, and what becomes of it.

    config: the keys of config.json beside model_type and architectures.
    layer: Hugging Face's name of each tensor of a layer, by the whole name within the layer
    ('ssm_dt.bias') or by that of its module ('attn_q'); what neither it nor `joined` names is
    refused. within: the prefix of a layer there. outer: the same outside layers. when: whether a
    file of that name is of this model.
    """

    name: str
    model_type: str
    model_class: str
    config: Callable[[Model], dict[str, Any]]
    layer: Names
    outer: Names = field(default_factory=lambda: OUTER)
    within: str = "model.layers.{i}."
    when: Callable[[Model], bool] = lambda _: True
    joined: tuple[Join, ...] = ()


OUTER: Names = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
ATTENTION: Names = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QK_NORMS: Names = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS: Names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
MLP: Names = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LLAMA: Names = {**NORMS, **ATTENTION, **MLP}
SANDWICH: Names = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def by_halves(m: Model) -> tuple[Step, ...]:
    heads, hidden = m.integer("attention.head_count"), m.integer("embedding_length")
    return (halves(m.integer("attention.key_length", hidden // heads)),)


# Queries and keys of architectures whose heads rotate in pairs at llama.cpp.
PERMUTED: Names = {part: To(str(ATTENTION[part]), by_halves) for part in ("attn_q", "attn_k")}


def routed(experts: str, gate: str, up: str, down: str) -> Names:
    """Stacks of experts, as one matrix each: `experts` holds them, the others are their names."""
    return {
        f"ffn_{part}_exps.weight": To(f"{experts}.{{e}}.{name}.weight", each=True)
        for part, name in (("gate", gate), ("up", up), ("down", down))
    }


EXPERTS: Names = {
    "ffn_gate_inp": "mlp.gate",
    **routed("mlp.experts", "gate_proj", "up_proj", "down_proj"),
}
CORRECTION: Names = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
SHARED_EXPERTS: Names = {
    f"ffn_{part}_shexp": f"mlp.shared_experts.{part}_proj" for part in ("gate", "up", "down")
}


def flat(_: Model) -> tuple[int, ...]:
    return (-1,)


def channels(m: Model) -> tuple[int, ...]:
    """The shape of the taps of a depthwise convolution."""
    return (-1, 1, m.integer("ssm.conv_kernel"))


def log_negative(_: Model) -> tuple[Step, ...]:
    return (LOG_NEGATIVE,)


def minus_one(_: Model) -> tuple[Step, ...]:
    return (MINUS_ONE,)


def shifted(names: Names, *kept: str) -> Names:
    """Return names whose norms multiply by 1 + weight, which the file holds as one number, but for
    those of the parts `kept`."""
    return {
        part: To(to, minus_one)
        if isinstance(to, str) and part.endswith("norm") and part not in kept
        else to
        for part, to in names.items()
    }
