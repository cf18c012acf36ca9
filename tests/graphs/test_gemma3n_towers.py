"""The towers of Gemma 3n: pictures against what timm computed, sound against Hugging Face."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import mobilenet_v5 as pictures
from tiny import randomise
from torch import Tensor

from lmcast.graphs import ConfigError, WeightError
from lmcast.graphs.blocks.conformer import Clamp
from lmcast.graphs.blocks.tower import Tower
from lmcast.graphs.towers import mobilenet_v5, usm
from lmcast.graphs.towers.record import TowerArch
from lmcast.graphs.weights.sources import load_into


def built(arch: TowerArch, raw: dict[str, Any], hidden: int) -> tuple[Any, Tower]:
    config = arch.read(raw, "gemma3n")
    with torch.device("meta"):
        return config, arch.build(config, SimpleNamespace(hidden_size=hidden)).eval()


def filled(arch: TowerArch, raw: dict[str, Any], hidden: int, tensors: dict[str, Tensor]) -> Tower:
    """Return a tower with weights from these tensors, in their dtype."""
    config, tower = built(arch, raw, hidden)
    binding = arch.bind(config, tower, {name: tuple(t.shape) for name, t in tensors.items()})
    tower = tower.to(next(iter(tensors.values())).dtype).to_empty(device="cpu")
    for name, parameter in tower.named_parameters():
        load_into(parameter.data, binding.sources[name], tensors.__getitem__)
    return tower


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    """All tensors of the tower of pictures, and those of tokens beside pictures."""
    _, tower = built(mobilenet_v5.TOWER, pictures.CONFIG, pictures.HIDDEN)
    shapes = pictures.stored(mobilenet_v5.TOWER, tower)
    found = {name: pictures.drawn(name, shape) for name, shape in shapes.items()}
    return found | {"model.embed_vision.embedding.weight": torch.zeros(4, 2048)}


@torch.no_grad()
def test_features_of_pictures_are_those_of_timm(drawn):
    tower = filled(mobilenet_v5.TOWER, pictures.CONFIG, pictures.HIDDEN, drawn)
    got = tower(pixels=pictures.pixels())
    want = torch.tensor(pictures.FEATURES, dtype=torch.float64)
    # Held with ten digits; both computed in fp64, in other orders: measured 6e-11.
    torch.testing.assert_close(got, want, atol=1e-9, rtol=0)


# What timm makes of multipliers: channels of the stem and of each stage.
CHANNELS = {
    1.0: (64, 128, 256, 640, 1280),
    2.0: (128, 256, 512, 1280, 2560),
    1.1: (72, 144, 280, 704, 1408),
    0.25: (64, 32, 64, 160, 320),
    0.04: (64, 8, 16, 24, 48),
    0.025: (64, 8, 8, 16, 32),
}


@pytest.mark.parametrize("multiplier", CHANNELS)
def test_channels_of_a_multiplier_are_those_of_timm(multiplier: float):
    arguments = {"channel_multiplier": multiplier}
    _, tower = built(mobilenet_v5.TOWER, {"vision_config": {"model_args": arguments}}, 8)
    widths = [tower.embed.conv.conv.weight.shape[0]]
    widths += [tower.blocks[index].project.conv.weight.shape[0] for index in (0, 3, 8, 45)]
    assert tuple(widths) == CHANNELS[multiplier]


def test_released_towers_have_as_many_parameters():
    """By timm's mobilenetv5_300m_enc, and by Hugging Face's class; either with a norm and a map."""
    from transformers import Gemma3nAudioConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder

    with torch.device("meta"):
        encoder = Gemma3nAudioEncoder(Gemma3nAudioConfig())
    heard = sum(parameter.numel() for parameter in encoder.parameters())
    released = {"do_pooling": True, "label_names": ["LABEL_0", "LABEL_1"], "model_args": None}
    for arch, raw, own, width in (
        (mobilenet_v5.TOWER, vision(**released), 294_126_912, 2048),
        (usm.TOWER, audio(conf_positional_bias_size=256, sscp_conv_eps=1e-3), heard, 1536),
    ):
        _, tower = built(arch, raw, 2048)
        found = sum(parameter.numel() for parameter in tower.parameters())
        assert found == own + width + 2048 * width


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_clamp_beyond_a_dtype_is_at_its_largest(dtype: torch.dtype):
    """1e10, which released files say, is beyond fp16: Hugging Face takes its largest number."""
    largest = torch.finfo(dtype).max
    numbers = torch.tensor([-largest, -3.0, float("inf")], dtype=dtype)
    wanted = numbers.clamp(-min(1e10, largest), min(1e10, largest))
    assert Clamp(1e10)(numbers).equal(wanted)
    assert Clamp(1e10)(numbers)[2].isfinite()


def vision(**settings: Any) -> dict[str, Any]:
    return {"vision_config": settings}


def audio(**settings: Any) -> dict[str, Any]:
    return {"audio_config": settings}


REFUSED: dict[str, tuple[TowerArch, dict[str, Any], str]] = {
    "another network": (
        mobilenet_v5.TOWER, vision(architecture="resnet50"), r"architecture is 'resnet50'"
    ),
    "another width": (mobilenet_v5.TOWER, vision(hidden_size=1024), r"hidden_size is 1024"),
    "what timm would take": (
        mobilenet_v5.TOWER, vision(model_args={"stem_size": 32}), r"model_args.stem_size"
    ),
    "an odd side": (
        mobilenet_v5.TOWER, vision(model_args={"msfa_output_resolution": 3}), r"an even number"
    ),
    "tokens of another side": (
        mobilenet_v5.TOWER, {"vision_soft_tokens_per_image": 64}, r"accepted: 256"
    ),
    "a key of vision": (mobilenet_v5.TOWER, vision(use_head=True), r"vision_config.use_head"),
    "another model of sound": (usm.TOWER, audio(model_type="whisper"), r"'whisper'"),
    "a key of sound": (usm.TOWER, audio(conf_rope=True), r"audio_config.conf_rope"),
    "three convolutions": (
        usm.TOWER, audio(sscp_conv_channel_size=[8, 4, 2]), r"sscp_conv_channel_size"
    ),
    "bands for no kernel": (
        usm.TOWER, audio(input_feat_size=2, sscp_conv_kernel_size=[[3, 9], [3, 3]]), r"do not fit"
    ),
    "heads that do not divide": (usm.TOWER, audio(conf_num_attention_heads=7), r"7 heads"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_tower_is_built_of_is_refused(name: str):
    arch, raw, message = REFUSED[name]
    with pytest.raises((ConfigError, ValueError), match=message):
        built(arch, raw, 8)


def test_a_tensor_that_nothing_reads_is_refused(drawn):
    surplus = f"{pictures.TIMM}blocks.2.1.dw_end.conv.weight"
    with pytest.raises(WeightError, match=surplus):
        filled(mobilenet_v5.TOWER, pictures.CONFIG, 6, {**drawn, surplus: torch.zeros(1)})


# -- sound

SMALL: dict[str, Any] = {
    "vocab_size": 4,
    "vocab_offset": 90,
    "input_feat_size": 12,
    "hidden_size": 16,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 6,
    "sscp_conv_channel_size": [6, 4],
}
# Changes of SMALL, each of which must show in the features.
SOUNDS: dict[str, dict[str, Any]] = {
    "small": {},
    "the frame alone": {"conf_attention_context_left": 1},
    "the default past": {"conf_attention_context_left": 13},
    "frames to come": {"conf_attention_context_right": 2},
    "every frame": {"conf_reduction_factor": 1},
    "a low cap": {"conf_attention_logit_cap": 0.5},
    "a long kernel": {"conf_conv_kernel_size": 7},
    "whole residuals": {"conf_residual_weight": 0.8},
    "one head": {"conf_num_attention_heads": 1},
    "large epsilons": {"rms_norm_eps": 0.1},
    "a large epsilon of groups": {"sscp_conv_group_norm_eps": 0.5},
    "clipped": {"gradient_clipping": 1.5},
    "other kernels and strides": {
        "sscp_conv_kernel_size": [[5, 3], [2, 4]],
        "sscp_conv_stride_size": [[1, 2], [3, 1]],
    },
}
HIDDEN = 16
FRAMES = (1, 2, 38)


def of_huggingface(
    settings: dict[str, Any],
) -> tuple[dict[str, Tensor], Callable[[Tensor], Tensor]]:
    """Return the tensors of Hugging Face's encoder and embedder, and the two as a function."""
    from transformers import Gemma3nAudioConfig, Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import (
        Gemma3nAudioEncoder,
        Gemma3nMultimodalEmbedder,
    )

    config = Gemma3nAudioConfig(**settings)
    encoder = Gemma3nAudioEncoder(config).eval()
    embedder = Gemma3nMultimodalEmbedder(config, Gemma3nTextConfig(hidden_size=HIDDEN)).eval()
    tensors = {}
    for seed, (name, module) in enumerate(
        {"audio_tower": encoder, "embed_audio": embedder}.items()
    ):
        randomise(module, seed)
        own = module.named_parameters()
        tensors |= {f"model.{name}.{key}": value.detach() for key, value in own}

    def features(mel: Tensor) -> Tensor:
        whole = torch.zeros(mel.shape[:2], dtype=torch.bool)
        return embedder(inputs_embeds=encoder(mel, whole).last_hidden_state).flatten(0, 1)

    return tensors, features


@pytest.mark.parametrize("name", SOUNDS)
@torch.no_grad()
def test_features_of_sound_are_those_of_hugging_face(name: str):
    settings = {**SMALL, **SOUNDS[name]}
    tensors, theirs = of_huggingface(settings)
    tower = filled(usm.TOWER, audio(**settings), HIDDEN, tensors)
    for frames in FRAMES:
        mel = torch.randn(2, frames, 12, generator=torch.Generator().manual_seed(frames))
        # Features are about 1; fp32 in other orders, through two blocks: measured 4e-6.
        torch.testing.assert_close(tower(mel=mel), theirs(mel), atol=3e-5, rtol=0)


@torch.no_grad()
def test_every_setting_of_sound_shows():
    mel = torch.randn(1, 38, 12, generator=torch.Generator().manual_seed(0))
    tensors, _ = of_huggingface(SMALL)
    plain = filled(usm.TOWER, audio(**SMALL), HIDDEN, tensors)(mel=mel)
    for name, change in SOUNDS.items():
        if name in ("small", "a long kernel", "other kernels and strides"):  # other weights
            continue
        try:
            other = filled(usm.TOWER, audio(**{**SMALL, **change}), HIDDEN, tensors)(mel=mel)
        except WeightError:
            continue
        assert other.shape != plain.shape or (other - plain).abs().max() > 1e-3, name
    # How Hugging Face cuts frames into chunks changes nothing.
    chunks = audio(**{**SMALL, "conf_attention_chunk_size": 7})
    assert torch.equal(filled(usm.TOWER, chunks, HIDDEN, tensors)(mel=mel), plain)
