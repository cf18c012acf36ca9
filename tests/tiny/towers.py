"""Small models with towers of pictures, made by Hugging Face, and the features that it computes.

Letters: N pictures of one grid, t frames of a clip, f frames within a patch, p pixels of a patch's
side, k patches of a token's side.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmcast.exporter.vision.patches import places, taps

Grid = tuple[int, int, int]  # frames, and rows and columns of patches
TEXT = {
    "vocab_size": 97,
    "hidden_size": 20,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
VISION = {"hidden_size": 32, "intermediate_size": 40, "patch_size": 4}
LAYERS = {"num_hidden_layers": 3, "num_attention_heads": 2}
EXPERTS = {"moe_intermediate_size": 8, "num_experts": 2, "num_experts_per_tok": 1}
LATENT = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "n_group": 1,
    "topk_group": 1,
}


@dataclass(frozen=True, kw_only=True, eq=False)  # by identity: settings cannot be hashed
class Tiny:
    """A model with a tower.

    arch: its model_type. model: Hugging Face's class. settings: for the class of its config.
    calls: N and the grid of each call. frames: f. theirs: the model and pixels N,t,f,3,H,W ->
    features.
    """

    arch: str
    model: str
    settings: dict[str, Any]
    merge: int
    calls: tuple[tuple[int, Grid], ...]
    theirs: Callable[[Any, Tensor], Tensor]
    frames: int = 1

    @property
    def patch(self) -> int:
        side: int = self.settings["vision_config"]["patch_size"]
        return side

    def make(self) -> Any:
        """Return the model in fp32 with weights that show; the same values every time."""
        import transformers

        cls = getattr(transformers, self.model)
        config = cls.config_class(**self.settings)
        model = cls._from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(len(self.arch))
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:  # norms keep their centre, 0 or 1; biases have 0
                parameter += 0.3 * noise
            elif "position" in name or "pos_emb" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(1.2 * noise / math.sqrt(math.prod(parameter.shape[1:])))
        return model

    def pixels(self, count: int, grid: Grid) -> Tensor:
        """Return what pictures have after normalizing, N,t,f,3,H,W."""
        frames, rows, columns = grid
        generator = torch.Generator().manual_seed(rows * columns)
        size = (rows * self.patch, columns * self.patch)
        return torch.randn(count, frames, self.frames, 3, *size, generator=generator)

    def patches(self, pixels: Tensor, merge: int | None = None) -> Tensor:
        """Return pixels N,t,f,3,H,W in patches N,M,K,E; merge: k, None for the model's."""
        n, t, f, _, height, width = pixels.shape
        p, k = self.patch, merge or self.merge
        rows, columns = height // p // k, width // p // k
        cut = pixels.reshape(n, t, f, 3, rows, k, p, columns, k, p)
        cut = cut.permute(0, 4, 7, 1, 5, 8, 3, 2, 6, 9)  # N, M, K, E, where each has several axes
        return cut.reshape(n, rows * columns, t * k * k, 3 * f * p * p)


def _images(model: Any, pixels: Tensor, **given: Any) -> Tensor:
    found = model.model.get_image_features(pixels[:, 0, 0], **given, return_dict=True)
    return torch.cat([features.flatten(0, -2) for features in found.pooler_output])


def _pixtral(model: Any, pixels: Tensor) -> Tensor:
    sizes = torch.tensor([list(pixels.shape[-2:])] * len(pixels))
    return _images(model, pixels, image_sizes=sizes)


def _llama4(model: Any, pixels: Tensor) -> Tensor:
    seen = model.vision_model(pixels[:, 0, 0]).last_hidden_state
    features: Tensor = model.multi_modal_projector(seen.flatten(0, 1))
    return features


def _qwen(model: Any, pixels: Tensor) -> Tensor:
    of_model = _of(model)
    patches = of_model.patches(pixels).flatten(0, 2)
    side = of_model.patch
    grid = [1, pixels.shape[-2] // side, pixels.shape[-1] // side]
    seen = model.model.visual(patches, torch.tensor([grid] * len(pixels)))
    return torch.cat([seen.pooler_output, *(seen.get("deepstack_features") or ())], -1)


def _kimi(model: Any, pixels: Tensor) -> Tensor:
    side = _of(model).patch
    found = []
    for clip in pixels:  # of several it mixes the rows up
        frames, _, _, height, width = clip.shape
        # In frame, row, column order: merged one by one, with the frames in front.
        rows = torch.cat([_of(model).patches(frame[None, None], 1)[0, :, 0] for frame in clip])
        grid = torch.tensor([[frames, height // side, width // side]])
        seen = model.model.vision_tower(rows.unflatten(1, (3, side, side)), grid_thw=grid)
        found.append(model.model.mm_projector(seen.pooler_output).flatten(0, 1))
    return torch.cat(found)


def _of(model: Any) -> Tiny:
    return next(tiny for tiny in TOWERS if tiny.arch == model.config.model_type)


def tables(tiny: Tiny, config: dict[str, Any], grid: Grid) -> dict[str, Tensor]:
    """Return what towers of this config may take besides patches."""
    found = places(grid, tiny.merge)
    vision = config.get("vision_config", {})
    if "num_position_embeddings" in vision:
        found |= taps(grid, tiny.merge, (5, 5), "linear")
    if "pos_emb_height" in vision:
        found |= taps(grid, tiny.merge, (5, 5), "cubic")
    out = {name: torch.from_numpy(table) for name, table in found.items()}
    frames = torch.arange(grid[0]) + int(grid[0] > 1)  # 0 is that of a picture
    out["frames"] = frames.repeat_interleave(tiny.merge**2).expand_as(out["rows"])
    return out


_QWEN = {
    "depth": 3,
    "num_heads": 2,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "out_hidden_size": TEXT["hidden_size"],
    "num_position_embeddings": 25,
    **VISION,
}
_QWEN_CALLS = ((2, (1, 4, 6)), (1, (1, 2, 16)))
TOWERS = (
    Tiny(
        arch="mistral3",
        model="Mistral3ForConditionalGeneration",
        settings={
            "text_config": {"model_type": "mistral", **TEXT, "rms_norm_eps": 1e-3},
            "vision_config": {"model_type": "pixtral", **VISION, **LAYERS},
            "multimodal_projector_bias": True,
            "vision_feature_layer": -2,
        },
        merge=2,
        calls=((2, (1, 4, 6)), (1, (1, 8, 2))),
        theirs=_pixtral,
    ),
    Tiny(
        arch="gemma3",
        model="Gemma3ForConditionalGeneration",
        settings={
            "text_config": {"model_type": "gemma3_text", **TEXT},
            "vision_config": {
                "model_type": "siglip_vision_model",
                **VISION,
                **LAYERS,
                "image_size": 24,
                "layer_norm_eps": 1e-3,
            },
            "mm_tokens_per_image": 9,
        },
        merge=2,
        calls=((2, (1, 6, 6)),),
        theirs=_images,
    ),
    Tiny(
        arch="llama4",
        model="Llama4ForConditionalGeneration",
        settings={
            "text_config": {
                "model_type": "llama4_text", **TEXT, "num_local_experts": 2,
                "intermediate_size_mlp": 24, "attention_chunk_size": 8,
            },
            "vision_config": {
                "model_type": "llama4_vision_model",
                **VISION,
                **LAYERS,
                "image_size": 24,
                "intermediate_size": 128,
                "projector_input_dim": 28,
                "projector_output_dim": 28,
                "vision_output_dim": 28,
            },
        },
        merge=2,
        calls=((3, (1, 6, 6)),),
        theirs=_llama4,
    ),
    Tiny(
        arch="qwen3_5",
        model="Qwen3_5ForConditionalGeneration",
        settings={
            "text_config": {"model_type": "qwen3_5_text", **TEXT},
            "vision_config": {"model_type": "qwen3_5_vision", **_QWEN},
        },
        merge=2,
        calls=_QWEN_CALLS,
        theirs=_qwen,
        frames=2,
    ),
    Tiny(
        arch="qwen3_vl",
        model="Qwen3VLForConditionalGeneration",
        settings={
            "text_config": {
                "model_type": "qwen3_vl_text", **TEXT, "num_hidden_layers": 2,
                "rope_parameters": {
                    "rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1],
                    "mrope_interleaved": True,
                },
            },
            "vision_config": {
                "model_type": "qwen3_vl_vision", **_QWEN, "deepstack_visual_indexes": [0, 2],
            },
        },
        merge=2,
        calls=_QWEN_CALLS,
        theirs=_qwen,
        frames=2,
    ),
    Tiny(
        arch="kimi_k25",
        model="Kimi_K25ForConditionalGeneration",
        settings={
            "text_config": {"model_type": "deepseek_v3", **TEXT, **LATENT},
            "vision_config": {
                "model_type": "kimi_k25_vision", **VISION, **LAYERS,
                "pos_emb_height": 5, "pos_emb_width": 5,
            },
            "projection_hidden_size": 32,
            "projection_layer_norm_eps": 1e-3,
        },
        merge=2,
        calls=((2, (1, 4, 6)), (1, (3, 6, 2)), (1, (4, 2, 2))),
        theirs=_kimi,
    ),
)  # fmt: skip
