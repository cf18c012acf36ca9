"""What the files of Kimi Linear say of Kimi Delta Attention, and where they hold it."""

from collections.abc import Mapping
from typing import Any, Literal

from lmcast.graphs.config.older_spellings import renamed
from lmcast.graphs.config.reading import ConfigError
from lmcast.graphs.weights.bind import Table
from lmcast.graphs.weights.experts import either
from lmcast.graphs.weights.sources import View

LayerType = Literal["linear_attention", "full_attention"]
NESTED = "linear_attn_config"
NAMES = {
    f"{NESTED}.full_attn_layers": "layer_types",  # once it and the other list are read
    f"{NESTED}.head_dim": "linear_head_dim",
    f"{NESTED}.num_heads": "linear_num_heads",
    f"{NESTED}.short_conv_kernel_size": "linear_conv_kernel_dim",
}
OURS, THEIRS = "layers.{i}.mixer", "model.layers.{i}.self_attn"


def lifted(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return `raw` with the keys of its linear_attn_config under Hugging Face's names.

    Raises ConfigError where the two differ.
    """
    out = dict(raw)
    nested = out.pop(NESTED, None)
    if not isinstance(nested, dict | None):
        raise ConfigError(f"config.json: {NESTED} is {nested!r:.80}; accepted: an object or null")
    rest = dict(nested or {})
    lists = [rest.pop(name, None) for name in ("full_attn_layers", "kda_layers")]
    if lists != [None, None]:
        rest["full_attn_layers"] = listed(*lists)
    return renamed({**out, **{f"{NESTED}.{key}": value for key, value in rest.items()}}, NAMES)


def listed(full: Any, linear: Any) -> list[LayerType]:
    """Return the types of layers of two lists of numbers that count from 1."""
    numbers = [*full, *linear] if isinstance(full, list) and isinstance(linear, list) else []
    counts = all(type(number) is int for number in numbers)
    if not numbers or not counts or sorted(numbers) != list(range(1, len(numbers) + 1)):
        raise ConfigError(
            f"config.json: {NESTED}.full_attn_layers is {full!r:.80} and kda_layers is"
            f" {linear!r:.80}; accepted: lists that together have the number of every layer, from"
            " 1 on, once"
        )
    kinds: list[LayerType] = ["linear_attention"] * len(numbers)
    for number in full:
        kinds[number - 1] = "full_attention"
    return kinds


def tensors(channels: int) -> Table:
    """As on the hub, or as Hugging Face names its modules; `channels` are of queries."""
    modules = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "beta": "b_proj"}
    modules |= {"gate_down": "g_a_proj", "gate_up": "g_b_proj", "norm": "o_norm"}
    decay = {"down.weight": "f_a_proj.weight", "up.weight": "f_b_proj.weight"}
    decay |= {"A_log": "A_log", "dt_bias": "dt_bias"}
    flat, nested = (
        {f"{OURS}.decay.{x}": View(f"{module}.{y}") for x, y in decay.items()}
        for module in (THEIRS, f"{THEIRS}.forget_gate")
    )
    convs = {
        f"{OURS}.{name}_conv": (
            View(f"{THEIRS}.{name[0]}_conv1d.weight"),
            View(f"{THEIRS}.conv1d.weight", (slice(i * channels, (i + 1) * channels),)),
        )
        for i, name in enumerate(("query", "key", "value"))
    }
    return {
        **{f"{OURS}.{x}": f"{THEIRS}.{y}" for x, y in modules.items()},
        **either(flat, nested),
        **convs,
    }
