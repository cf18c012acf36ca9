"""Checkpoints with experts that must be refused, each one change away from a good one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny.llama import (
    CONFIG,
    WEIGHTS,
    Build,
    config,
    poke,
    set_tensor,
    shapes,
    steps,
    tensors,
    weights,
    write_json,
)
from torch import Tensor

from files.malformed import Malformed

EXPERTS, INNER, DIM = 4, 24, 32
QWEN: dict[str, Any] = {
    **CONFIG,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER,
    "norm_topk_prob": True,
}
GLM: dict[str, Any] = {
    **CONFIG,
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 0,
}
TRINITY: dict[str, Any] = {
    **CONFIG,
    "architectures": ["AfmoeForCausalLM"],
    "model_type": "afmoe",
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER,
    "num_shared_experts": 1,
    "num_dense_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
}
MLP = "model.layers.0.mlp"
ROUTER = f"{MLP}.gate.weight"
CORRECTION = f"{MLP}.gate.e_score_correction_bias"
BOTH, DOWN = f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"


def expert(number: int, matrix: str) -> str:
    return f"{MLP}.experts.{number}.{matrix}_proj.weight"


def experts_of(layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer's router and experts."""
    mlp = f"model.layers.{layer}.mlp"
    found: dict[str, tuple[int, ...]] = {f"{mlp}.gate.weight": (EXPERTS, DIM)}
    for e in range(EXPERTS):
        found |= {f"{mlp}.experts.{e}.{x}_proj.weight": (INNER, DIM) for x in ("gate", "up")}
        found[f"{mlp}.experts.{e}.down_proj.weight"] = (DIM, INNER)
    return found


def tiny_moe(settings: dict[str, Any] = QWEN) -> Build:
    """Make the tiny llama a tiny model with experts in all layers, which must be accepted."""

    def build(folder: Path) -> None:
        wanted = {name: s for name, s in shapes().items() if ".mlp." not in name}
        for layer in range(2):
            wanted |= experts_of(layer)
            module = f"model.layers.{layer}"
            if settings is QWEN:
                wanted |= {f"{module}.self_attn.{x}_norm.weight": (8,) for x in "qk"}
            elif settings is GLM:
                wanted[f"{module}.mlp.gate.e_score_correction_bias"] = (EXPERTS,)
                wanted |= _shared(layer)
            else:
                wanted[f"{module}.mlp.expert_bias"] = (EXPERTS,)
                wanted[f"{module}.mlp.router.gate.weight"] = wanted.pop(f"{module}.mlp.gate.weight")
                wanted |= _shared(layer)
                wanted |= {f"{module}.self_attn.{x}_norm.weight": (8,) for x in "qk"}
                wanted[f"{module}.self_attn.gate_proj.weight"] = (DIM, DIM)
                wanted |= {f"{module}.{x}_mlp_layernorm.weight": (DIM,) for x in ("pre", "post")}
        random = torch.Generator().manual_seed(0)
        values = {n: torch.randn(s, generator=random) * 0.1 for n, s in wanted.items()}
        for name in values:
            if "norm" in name:
                values[name] += 1
        save_file(values, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / "config.json", settings)

    return build


def _shared(layer: int) -> dict[str, tuple[int, ...]]:
    shared = f"model.layers.{layer}.mlp.shared_experts"
    found: dict[str, tuple[int, ...]] = {f"{shared}.down_proj.weight": (DIM, INNER)}
    return found | {f"{shared}.{x}_proj.weight": (INNER, DIM) for x in ("gate", "up")}


def stacked(values: dict[str, Tensor]) -> None:
    """Put each layer's experts into the two stacks that Hugging Face's modules have."""
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            torch.stack([values.pop(f"{at}.{e}.{x}_proj.weight") for e in range(EXPERTS)])
            for x in ("gate", "up", "down")
        )
        values[f"{at}.gate_up_proj"] = torch.cat([gate, up], 1)
        values[f"{at}.down_proj"] = down


def in_stacks(change: Callable[[dict[str, Tensor]], Any] = len) -> Build:
    return tensors(lambda values: (stacked(values), change(values)))


def to_bfloat16(values: dict[str, Tensor]) -> None:
    values.update({name: value.bfloat16() for name, value in values.items()})


def in_bfloat16(change: Callable[[dict[str, Tensor]], Any] = len) -> Build:
    """Store everything in bfloat16, which is copied into the engine as float32; then change it."""
    return tensors(lambda values: (to_bfloat16(values), change(values)))


def spoil(name: str, index: int, value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda values: values[name].view(-1).__setitem__(index, value)


def without(*names: str) -> Build:
    return tensors(lambda values: [values.pop(name) for name in names])


def _with_both_forms(folder: Path) -> None:
    before = weights(folder)
    in_stacks()(folder)
    tensors(lambda values: values.update(before))(folder)


NAN = float("nan")
NEXT = "model.layers.2"  # behind the last

MOE: list[tuple[str, Build, str]] = [
    ("router_missing", without(ROUTER), r"0\.mlp\.gate\.weight is missing"),
    ("router_transposed", set_tensor(ROUTER, lambda t: t[ROUTER].T), r"mlp\.gate.*\[4, 32\]"),
    ("router_flat", set_tensor(ROUTER, lambda t: t[ROUTER].flatten()), r"mlp\.gate.*\[128\]"),
    ("router_integers", set_tensor(ROUTER, lambda t: t[ROUTER].int()), r"mlp\.gate.*int32"),
    ("router_nan", poke(ROUTER, 33, NAN), r"mlp\.gate\.weight.*nan.*33"),
    ("router_bias_surplus", set_tensor(f"{MLP}.gate.bias", lambda t: torch.ones(4)), "gate.bias"),
    ("expert_first_missing", without(expert(0, "gate")), r"experts\.0\.gate_proj.*is missing"),
    ("expert_last_missing", without(expert(3, "down")), r"experts\.3\.down_proj.*is missing"),
    (
        "expert_without_matrices",
        without(*(expert(2, x) for x in ("gate", "up", "down"))),
        r"experts\.2\.gate_proj.*is missing",
    ),
    (
        "experts_all_missing",
        tensors(lambda t: [t.pop(n) for n in list(t) if ".experts." in n]),
        r"experts\.0\.gate_proj.*is missing",
    ),
    (
        "expert_wider",
        set_tensor(expert(2, "gate"), lambda t: torch.ones(25, DIM)),
        r"experts\.2\.gate_proj.*\[25, 32\].*\[24, 32\]",
    ),
    (
        "expert_transposed",
        set_tensor(expert(1, "down"), lambda t: t[expert(1, "down")].T),
        r"experts\.1\.down_proj.*\[24, 32\].*\[32, 24\]",
    ),
    (
        "expert_of_no_rows",
        set_tensor(expert(3, "up"), lambda t: torch.ones(0, DIM)),
        r"experts\.3\.up_proj",
    ),
    (
        "expert_integers",
        set_tensor(expert(1, "up"), lambda t: t[expert(1, "up")].to(torch.int8)),
        r"experts\.1\.up_proj.*int8; accepted",
    ),
    ("expert_nan_linked", poke(expert(3, "up"), 5, NAN), r"experts\.3\.up_proj.*nan.*index 5"),
    (
        "expert_nan_copied",
        in_bfloat16(spoil(expert(2, "down"), 700, NAN)),
        r"experts\.2\.down_proj.*nan.*index 700",
    ),
    (
        "expert_surplus",
        set_tensor(f"{MLP}.experts.4.up_proj.weight", lambda t: torch.ones(INNER, DIM)),
        r"experts\.4\.up_proj.*nothing reads",
    ),
    (
        "expert_bias_surplus",
        set_tensor(f"{MLP}.experts.1.up_proj.bias", lambda t: torch.ones(INNER)),
        r"experts\.1\.up_proj\.bias.*nothing reads",
    ),
    ("experts_fewer_than_stored", config(num_experts=3), r"mlp\.gate.*\[4, 32\].*\[3, 32\]"),
    (
        "experts_fewer_than_stored_but_for_the_routers",
        steps(
            tensors(lambda t: t.update({n: t[n][:3] for n in t if n.endswith("mlp.gate.weight")})),
            config(num_experts=3),
        ),
        r"experts\.3\.\w+_proj.*nothing reads",
    ),
    ("experts_more_than_stored", config(num_experts=5), r"mlp\.gate.*\[4, 32\].*\[5, 32\]"),
    ("experts_ten_million", config(num_experts=10**7), "num_experts is 10000000; accepted: 1 to"),
    ("experts_most", config(num_experts=4096), r"mlp\.gate.*\[4, 32\].*\[4096, 32\]"),
    ("experts_zero", config(num_experts=0), "num_experts is 0; accepted: 1"),
    ("experts_negative", config(num_experts=-4), "num_experts is -4; accepted: 1"),
    ("experts_null", config(num_experts=None), "num_experts is None; accepted: an integer"),
    ("experts_in_two_keys", config(num_local_experts=8), "num_experts is 4, but num_local_experts"),
    ("experts_string", config(num_experts="4"), "num_experts is '4'; accepted: an integer"),
    ("inner_zero", config(moe_intermediate_size=0), "moe_intermediate_size is 0; accepted: 1"),
    ("inner_negative", config(moe_intermediate_size=-24), "moe_intermediate_size is -24"),
    ("inner_other", config(moe_intermediate_size=16), r"experts\.0\.\w+_proj.*24.*16"),
    ("inner_huge", config(moe_intermediate_size=2**62), "moe_intermediate_size is 4611"),
    ("top_k_zero", config(num_experts_per_tok=0), "num_experts_per_tok is 0; accepted: 1"),
    ("top_k_negative", config(num_experts_per_tok=-2), "num_experts_per_tok is -2"),
    ("top_k_above", config(num_experts_per_tok=5), "num_experts_per_tok is 5; accepted: .* 4 exp"),
    ("top_k_null", config(num_experts_per_tok=None), "num_experts_per_tok is None; accepted"),
    ("dense_layer_stored_sparse", config(mlp_only_layers=[0]), r"0\.mlp\.gate_proj.*is missing"),
    ("dense_layer_negative", config(mlp_only_layers=[-1]), r"mlp_only_layers\[0\] is -1"),
    ("dense_layers_number", config(mlp_only_layers=1), "mlp_only_layers is 1; accepted: a list"),
    ("sparse_step_zero", config(decoder_sparse_step=0), "decoder_sparse_step is 0; accepted: 1"),
    ("sparse_step_two", config(decoder_sparse_step=2), r"0\.mlp\.gate_proj.*is missing"),
    ("renormalized_number", config(norm_topk_prob=1), "norm_topk_prob is 1; accepted: true or"),
    ("activation_of_no_kernel", config(hidden_act="mish"), "hidden_act is 'mish'; implemented"),
    ("quantized", config(quantization_config={"quant_method": "fp8"}), "quantization_config"),
    ("both_forms", _with_both_forms, r"experts\.0\.gate_proj.*experts\.gate_up_proj.*accepted"),
    (
        "stack_transposed",
        in_stacks(lambda t: t.update({BOTH: t[BOTH].mT})),
        r"gate_up_proj has shape \[4, 32, 48\]",
    ),
    (
        "stack_of_down_transposed",
        in_stacks(lambda t: t.update({DOWN: t[DOWN].mT})),
        r"experts\.down_proj has shape \[4, 24, 32\].*\[4, 32, 24\]",
    ),
    (
        "stack_of_gates_alone",
        in_stacks(lambda t: t.update({BOTH: t[BOTH][:, :INNER]})),
        r"gate_up_proj has shape \[4, 24, 32\]",
    ),
    (
        "stack_wider",
        in_stacks(lambda t: t.update({BOTH: torch.cat([t[BOTH], t[BOTH]], 1)})),
        r"gate_up_proj has shape \[4, 96, 32\]",
    ),
    (
        "stack_short",
        in_stacks(lambda t: t.update({DOWN: t[DOWN][:3]})),
        r"down_proj.*\[3, 32, 24\]",
    ),
    ("stack_flat", in_stacks(lambda t: t.update({BOTH: t[BOTH].flatten()})), r"gate_up_proj.*6144"),
    ("stack_missing", in_stacks(lambda t: t.pop(DOWN)), r"experts\.\S*down_proj\S* is missing"),
    ("stack_nan_linked", in_stacks(spoil(BOTH, 3000, NAN)), r"gate_up_proj.*nan.*index 3000"),
    (
        "stack_nan_copied",
        steps(in_stacks(), in_bfloat16(spoil(BOTH, 3000, NAN))),
        r"gate_up_proj.*nan.*index 3000",
    ),
    (
        "stack_integers",
        in_stacks(lambda t: t.update({BOTH: t[BOTH].int()})),
        r"gate_up_proj.*int32",
    ),
]

GROUPS: list[tuple[str, Build, str]] = [
    ("groups_that_do_not_divide", config(n_group=3), "n_group is 3; accepted: a divisor of .* 4"),
    ("groups_zero", config(n_group=0), "n_group is 0; accepted: 1"),
    ("groups_more_than_experts", config(n_group=8), "n_group is 8; accepted: a divisor"),
    ("groups_kept_above", config(topk_group=3), "topk_group is 3; accepted: at most n_group, 2"),
    ("groups_kept_zero", config(topk_group=0), "topk_group is 0; accepted: 1"),
    (
        "top_k_above_the_kept_groups",
        config(num_experts_per_tok=3),
        "num_experts_per_tok is 3; accepted: at most the 2 experts",
    ),
    ("scale_zero", config(routed_scaling_factor=0.0), "routed_scaling_factor is 0.0; accepted"),
    ("scale_string", config(routed_scaling_factor="2"), "routed_scaling_factor is '2'"),
    ("shared_zero", config(n_shared_experts=0), "n_shared_experts is 0; accepted: 1"),
    ("shared_more_than_stored", config(n_shared_experts=2), r"shared_experts.*\[24, 32\].*\[48"),
    (
        "sizes_beyond_any_memory",
        config(n_shared_experts=2**24, moe_intermediate_size=2**24, hidden_size=2**24),
        "config.json: it asks for a weight beyond any memory",
    ),
    ("shared_missing", without(f"{MLP}.shared_experts.up_proj.weight"), "shared_experts.up_proj"),
    ("correction_missing", without(CORRECTION), "e_score_correction_bias is missing"),
    ("correction_short", set_tensor(CORRECTION, lambda t: torch.ones(3)), r"correction.*\[3\]"),
    ("correction_nan", poke(CORRECTION, 2, NAN), r"e_score_correction_bias.*nan.*index 2"),
    ("dense_layers_negative", config(first_k_dense_replace=-1), "first_k_dense_replace is -1"),
    ("dense_layers_stored_sparse", config(first_k_dense_replace=1), r"0\.mlp\.gate_proj.*missing"),
    (
        "layer_more_than_stated",
        config(num_hidden_layers=1),
        r"model\.layers\.1\..*nothing reads",
    ),
    (
        "predictors_more_than_stated",
        steps(
            config(num_nextn_predict_layers=0),
            set_tensor(f"{NEXT}.eh_proj.weight", lambda t: torch.ones(DIM, 2 * DIM)),
        ),
        r"layers\.2\.eh_proj.*nothing reads",
    ),
]

LISTS: list[tuple[str, Build, str]] = [
    ("types_short", config(layer_types=["full_attention"]), "layer_types has 1 .*_layers is 2"),
    ("types_long", config(layer_types=["full_attention"] * 3), "layer_types has 3 entries"),
    ("types_empty", config(layer_types=[]), "layer_types has 0 entries"),
    ("types_other", config(layer_types=["chunked_attention"] * 2), r"layer_types\[0\] is 'chunk"),
    ("window_missing", config(sliding_window=None), r"layer_types\[0\].*sliding_window"),
    ("full_layers_zero", config(global_attn_every_n_layers=0), "global_attn_every_n_layers is 0"),
    ("routes_not_normed", config(route_norm=False), "route_norm is False; implemented: True"),
    ("groups_of_trinity", config(n_group=2), "n_group is 2; implemented: 1"),
    ("gate_missing", without("model.layers.0.self_attn.gate_proj.weight"), "self_attn.gate_proj"),
    ("expert_bias_missing", without(f"{MLP}.expert_bias"), "mlp.expert_bias is missing"),
]

MALFORMED_MOE = [
    Malformed(
        f"{settings['model_type']}_{name}", steps(tiny_moe(settings), build), message, "export"
    )
    for settings, rows in ((QWEN, MOE), (GLM, GROUPS), (TRINITY, LISTS))
    for name, build, message in rows
]
