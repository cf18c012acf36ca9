"""The towers of the giants that read pictures, and what carries their features into the text."""

from collections.abc import Iterator, Mapping
from typing import Any

from giants.latents import Tensor, gated

Config = Mapping[str, Any]
Shapes = dict[str, tuple[int, ...]]


def _of(at: str, shapes: Shapes) -> Iterator[Tensor]:
    for name, shape in shapes.items():
        yield f"{at}{name}", "BF16", shape


def _linear(name: str, out: int, inner: int) -> Shapes:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def _norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def siglip(c: Config) -> Iterator[Tensor]:
    """That of Gemma 3."""
    v, text = c["vision_config"], c["text_config"]["hidden_size"]
    dim, inner, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    at = "vision_tower.vision_model."
    yield from _of(f"{at}embeddings.", {
        "patch_embedding.weight": (dim, 3, patch, patch), "patch_embedding.bias": (dim,),
        "position_embedding.weight": ((v["image_size"] // patch) ** 2, dim),
    })  # fmt: skip
    for i in range(v["num_hidden_layers"]):
        attention = [_linear(f"self_attn.{n}_proj", dim, dim) for n in ("q", "k", "v", "out")]
        shapes = _norm("layer_norm1", dim) | _norm("layer_norm2", dim)
        for part in (*attention, _linear("mlp.fc1", inner, dim), _linear("mlp.fc2", dim, inner)):
            shapes |= part
        yield from _of(f"{at}encoder.layers.{i}.", shapes)
    yield from _of(at, _norm("post_layernorm", dim))
    yield from _of("multi_modal_projector.", {
        "mm_input_projection_weight": (dim, text), "mm_soft_emb_norm.weight": (dim,),
    })  # fmt: skip


def pixtral(c: Config) -> Iterator[Tensor]:
    """That of Mistral Small 3.1."""
    v, text = c["vision_config"], c["text_config"]["hidden_size"]
    dim, patch, at = v["hidden_size"], v["patch_size"], "vision_tower."
    yield from _of(at, {"patch_conv.weight": (dim, 3, patch, patch), "ln_pre.weight": (dim,)})
    for i in range(v["num_hidden_layers"]):
        layer = f"{at}transformer.layers.{i}"
        attention = {f"attention.{n}_proj.weight": (dim, dim) for n in "qkvo"}
        norms = {f"{n}_norm.weight": (dim,) for n in ("attention", "ffn")}
        yield from _of(f"{layer}.", attention | norms)
        yield from gated(f"{layer}.feed_forward", dim, v["intermediate_size"])
    yield from _of("multi_modal_projector.", {
        "norm.weight": (dim,),
        "patch_merger.merging_layer.weight": (dim, dim * c["spatial_merge_size"] ** 2),
        "linear_1.weight": (text, dim), "linear_2.weight": (text, text),
    })  # fmt: skip


def llama4_vision(c: Config) -> Iterator[Tensor]:
    v, text, at = c["vision_config"], c["text_config"]["hidden_size"], "vision_model."
    dim, inner, patch = v["hidden_size"], v["intermediate_size"], v["patch_size"]
    yield from _of(at, {
        "class_embedding": (dim,),
        "positional_embedding_vlm": ((v["image_size"] // patch) ** 2 + 1, dim),
        "patch_embedding.linear.weight": (dim, 3 * patch * patch),
        **_norm("layernorm_pre", dim), **_norm("layernorm_post", dim),
    })  # fmt: skip
    for i in range(v["num_hidden_layers"]):
        shapes = _norm("input_layernorm", dim) | _norm("post_attention_layernorm", dim)
        attention = [_linear(f"self_attn.{n}_proj", dim, dim) for n in "qkvo"]
        for part in (*attention, _linear("mlp.fc1", inner, dim), _linear("mlp.fc2", dim, inner)):
            shapes |= part
        yield from _of(f"{at}model.layers.{i}.", shapes)
    out = v["projector_output_dim"]
    yield from _of(f"{at}vision_adapter.mlp.", {
        "fc1.weight": (v["projector_input_dim"], inner), "fc2.weight": (out, out),
    })  # fmt: skip
    yield from _of("multi_modal_projector.", {"linear_1.weight": (text, v["vision_output_dim"])})


def qwen_vision(c: Config) -> Iterator[Tensor]:
    """That of Qwen3.5."""
    v, at = c["vision_config"], "model.visual."
    dim, patch, merged = v["hidden_size"], v["patch_size"], v["spatial_merge_size"] ** 2
    kernel = (dim, 3, v["temporal_patch_size"], patch, patch)
    yield from _of(at, {
        "patch_embed.proj.weight": kernel, "patch_embed.proj.bias": (dim,),
        "pos_embed.weight": (v["num_position_embeddings"], dim),
    })  # fmt: skip
    names = ("attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2")
    for i in range(v["depth"]):
        yield from _of(f"{at}blocks.{i}.", _fused(v, names, ("norm1", "norm2")))
    yield from _of(f"{at}merger.", {
        **_norm("norm", dim), **_linear("linear_fc1", merged * dim, merged * dim),
        **_linear("linear_fc2", v["out_hidden_size"], merged * dim),
    })  # fmt: skip


def _fused(v: Config, names: tuple[str, ...], norms: tuple[str, ...]) -> Shapes:
    """Return a layer with one matrix of queries, keys and values."""
    dim, inner = v["hidden_size"], v["intermediate_size"]
    sizes = ((3 * dim, dim), (dim, dim), (inner, dim), (dim, inner))
    shapes = Shapes()
    for name, (out, taken) in zip(names, sizes, strict=True):
        shapes |= _linear(name, out, taken)
    for name in norms:
        shapes |= _norm(name, dim)
    return shapes


def moonvit(c: Config) -> Iterator[Tensor]:
    """That of Kimi K2.5, whose config has names of its own."""
    v, text, at = c["vision_config"], c["text_config"]["hidden_size"], "vision_tower."
    own = {name.removeprefix("vt_"): value for name, value in v.items()}
    dim, patch = own["hidden_size"], v["patch_size"]
    merged = v["merge_kernel_size"][0] * v["merge_kernel_size"][1]
    yield from _of(f"{at}patch_embed.", {
        "proj.weight": (dim, 3, patch, patch), "proj.bias": (dim,),
        "pos_emb.weight": (v["init_pos_emb_height"], v["init_pos_emb_width"], dim),
    })  # fmt: skip
    names = ("wqkv", "wo", "mlp.fc0", "mlp.fc1")
    for i in range(own["num_hidden_layers"]):
        yield from _of(f"{at}encoder.blocks.{i}.", _fused(own, names, ("norm0", "norm1")))
    yield from _of(f"{at}encoder.", _norm("final_layernorm", dim))
    yield from _of("mm_projector.", {
        **_norm("pre_norm", dim), **_linear("proj.0", merged * dim, merged * dim),
        **_linear("proj.2", text, merged * dim),
    })  # fmt: skip
