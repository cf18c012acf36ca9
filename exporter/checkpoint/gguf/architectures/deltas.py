"""Gated DeltaNets: Qwen3-Next and Qwen3.5, dense and with experts."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lmcast.exporter.checkpoint.gguf.architecture import (
    ATTENTION,
    EXPERTS,
    MLP,
    OUTER,
    QK_NORMS,
    Architecture,
    Join,
    Names,
    To,
    channels,
    log_negative,
    shifted,
)
from lmcast.exporter.checkpoint.gguf.architectures.mixtures import partial_rope, routing
from lmcast.exporter.checkpoint.gguf.decode import (
    LOG_NEGATIVE,
    Step,
    by_unit,
    chained,
    stored,
    viewed,
)
from lmcast.exporter.checkpoint.gguf.header import Entry
from lmcast.exporter.checkpoint.gguf.model import Model, dense, heads, require, shared
from lmcast.exporter.checkpoint.tensors import StoredTensor

INTERVAL = 4  # every fourth layer is one of attention, unless the file says otherwise


class Widths:
    """The sizes of the DeltaNets of a file."""

    def __init__(self, m: Model):
        self.keys = m.integer("ssm.group_count")  # heads of queries and keys
        self.values = m.integer("ssm.time_step_rank")  # heads of values
        self.key_dim = m.integer("ssm.state_size")
        inner = m.integer("ssm.inner_size")
        self.value_dim = inner // self.values
        if self.values * self.value_dim != inner or self.values % self.keys:
            raise m.error(
                f"{m.key('ssm.inner_size')} is {inner} and {m.key('ssm.group_count')} is"
                f" {self.keys}; accepted: a multiple of the {self.values} heads, and a divisor"
            )
        self.ratio = self.values // self.keys


def delta_nets(m: Model) -> dict[str, Any]:
    w, attention = Widths(m), heads(m, partial=True)
    if m.has("attention.recurrent_layers"):
        linear = m.each("attention.recurrent_layers", bool)
        m.ignore("full_attention_interval")
    else:
        every = m.integer("full_attention_interval", INTERVAL)
        linear = [(layer + 1) % every != 0 for layer in range(m.layers)]
    return {
        **shared(m),
        **attention,
        "hidden_act": "silu",
        "layer_types": [("full_attention", "linear_attention")[is_linear] for is_linear in linear],
        "linear_conv_kernel_dim": m.integer("ssm.conv_kernel"),
        "linear_key_head_dim": w.key_dim,
        "linear_value_head_dim": w.value_dim,
        "linear_num_key_heads": w.keys,
        "linear_num_value_heads": w.values,
        "rope_parameters": partial_rope(m, attention["head_dim"]),
    }


def experts(m: Model) -> dict[str, Any]:
    """Keys of routed and shared experts; llama.cpp renormalizes for these architectures."""
    require(m, "expert_weights_norm", True)
    names = {"experts": "num_experts", "top_k": "num_experts_per_tok"}
    return {
        **routing(m, **names, inner="moe_intermediate_size"),
        "norm_topk_prob": True,
        "shared_expert_intermediate_size": m.integer("expert_shared_feed_forward_length"),
    }


def qwen3next(m: Model) -> dict[str, Any]:
    full = [i for i, e in enumerate(m.layer_entries("ffn_gate.weight")) if e is not None]
    return {**delta_nets(m), **dense(m), **experts(m), "mlp_only_layers": full}


def with_sections(m: Model) -> dict[str, Any]:
    """How pairs divide among positions in time, height and width, which are the same in a text."""
    out = delta_nets(m)
    sections = m.metadata.items(m.key("rope.dimension_sections"), int)
    out["rope_parameters"] |= {"mrope_section": sections[:3], "mrope_interleaved": True}
    return out


def qwen35(m: Model) -> dict[str, Any]:
    return {**with_sections(m), **dense(m)}


def qwen35moe(m: Model) -> dict[str, Any]:
    m.ignore("feed_forward_length")  # of dense layers, of which there are none
    return {**with_sections(m), **experts(m)}


def side_by_side(*parts: Tensor) -> Tensor:
    return torch.cat(parts, dim=1)


def grouped_inputs(m: Model, prefix: str, qkv: Entry, gate: Entry) -> Iterable[StoredTensor]:
    """in_proj_qkvz of Qwen3-Next: of each head of keys its query, key, values and gates."""
    w = Widths(m)
    keys = w.keys * w.key_dim
    parts = (
        stored(qkv.name, qkv, rows=range(keys)),
        stored(qkv.name, qkv, rows=range(keys, 2 * keys)),
        stored(qkv.name, qkv, rows=range(2 * keys, qkv.shape[0])),
        stored(gate.name, gate),
    )
    yield by_unit(f"{prefix}linear_attn.in_proj_qkvz.weight", w.keys, side_by_side, *parts)


def ungrouped(
    w: Widths, name: str, entry: Entry, width: int, start: int = 0, steps: tuple[Step, ...] = ()
) -> StoredTensor:
    """Heads of values from row `start` on, each `width` rows, of a file that lists the first of
    every head of keys, then the second, and so on -> all of a head of keys together."""
    size = w.keys * width
    runs = (start + turn * size for turn in range(w.ratio))
    parts = (stored(entry.name, entry, steps, range(at, at + size)) for at in runs)
    return by_unit(name, w.keys, side_by_side, *parts)


def reordered(
    theirs: str,
    width: Callable[[Widths], int],
    steps: tuple[Step, ...] = (),
    shape: Callable[[Model], tuple[int, ...]] | None = None,
    keys: bool = False,
) -> Callable[..., Iterable[StoredTensor]]:
    """Return what makes a tensor whose rows, after those of queries and keys if it has them
    (`keys`), are heads of values."""

    def make(m: Model, prefix: str, entry: Entry) -> Iterable[StoredTensor]:
        w, name = Widths(m), f"{prefix}linear_attn.{theirs}"
        whole = entry if shape is None else viewed(entry, *shape(m))
        start = 2 * w.keys * w.key_dim if keys else 0
        if whole.shape[0] != start + w.values * width(w):
            raise ValueError(
                f"tensor {entry.name!r} has {whole.shape[0]} rows; accepted:"
                f" {start + w.values * width(w)}"
            )
        values = ungrouped(w, name, whole, width(w), start, steps)
        if not keys:
            yield values
        else:
            yield chained(name, stored(name, whole, rows=range(start)), values)

    return make


def _outputs(m: Model) -> tuple[Step, ...]:
    """The same order of heads in columns."""
    w = Widths(m)

    def change(values: Tensor) -> Tensor:
        tiled = values.reshape(*values.shape[:-1], w.ratio, w.keys, w.value_dim)
        return tiled.transpose(-3, -2).flatten(-3)

    return (Step(change),)


def _one(_: Widths) -> int:
    return 1


def _value(w: Widths) -> int:
    return w.value_dim


REORDERED = (
    Join(("attn_qkv.weight",), reordered("in_proj_qkv.weight", _value, keys=True)),
    Join(("attn_gate.weight",), reordered("in_proj_z.weight", _value)),
    Join(("ssm_alpha.weight",), reordered("in_proj_a.weight", _one)),
    Join(("ssm_beta.weight",), reordered("in_proj_b.weight", _one)),
    Join(("ssm_a",), reordered("A_log", _one, steps=(LOG_NEGATIVE,))),
    Join(("ssm_dt.bias",), reordered("dt_bias", _one)),
    Join(
        ("ssm_conv1d.weight",),
        reordered("conv1d.weight", _value, shape=channels, keys=True),
    ),
)
NORMS = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
PLAIN: Names = {**NORMS, **ATTENTION, **QK_NORMS, **MLP}
SPARSE: Names = {
    **EXPERTS,
    **{f"ffn_{x}_shexp": f"mlp.shared_expert.{x}_proj" for x in ("gate", "up", "down")},
    "ffn_gate_inp_shexp.weight": To("mlp.shared_expert_gate.weight", shape=lambda _: (1, -1)),
}
ARCHITECTURES = (
    Architecture(
        name="qwen3next",
        model_type="qwen3_next",
        model_class="Qwen3NextForCausalLM",
        config=qwen3next,
        layer={
            **shifted(PLAIN),
            **SPARSE,
            "ssm_in": "linear_attn.in_proj_qkvz",  # of older files, in Hugging Face's order
            "ssm_ba": "linear_attn.in_proj_ba",
            "ssm_a": To("linear_attn.A_log", log_negative),
            "ssm_dt.bias": "linear_attn.dt_bias",
            "ssm_conv1d.weight": To("linear_attn.conv1d.weight", shape=channels),
            "ssm_norm": "linear_attn.norm",
            "ssm_out": "linear_attn.out_proj",
        },
        outer=shifted(OUTER),
        joined=(Join(("attn_qkv.weight", "attn_gate.weight"), grouped_inputs),),
    ),
    *(
        Architecture(
            name=name,
            model_type=model_type,
            model_class=model_class,
            config=config,
            layer={
                **shifted(PLAIN),
                **SPARSE,
                "ssm_norm": "linear_attn.norm",
                "ssm_out": To("linear_attn.out_proj", _outputs),
            },
            outer=shifted(OUTER),
            joined=REORDERED,
        )
        for name, model_type, model_class, config in (
            ("qwen35", "qwen3_5_text", "Qwen3_5ForCausalLM", qwen35),
            ("qwen35moe", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", qwen35moe),
        )
    ),
)
