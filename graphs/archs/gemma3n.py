"""Gemma 3n E2B and E4B: the text model of gemma3n_text beside models of images and of sound."""

from lmcast.graphs.archs import gemma3n_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value

DEFAULTS = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
}
KEYS = """
audio_config audio_soft_tokens_per_image audio_token_id boa_token_id boi_token_id eoa_token_id
eoi_token_id image_token_id vision_config vision_soft_tokens_per_image
"""

ARCH = Multimodal(
    name="gemma3n",
    texts={"gemma3n_text": Text(gemma3n_text.ARCH, DEFAULTS)},
    inert=at_any_value(KEYS.split()),
    beside=("vision_tower", "audio_tower", "embed_vision", "embed_audio"),
    tied=True,
)
