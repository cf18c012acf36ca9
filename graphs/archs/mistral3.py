"""Mistral Small 3.1 and 3.2, Ministral 3: the text of mistral or ministral3 beside Pixtral."""

from lmcast.graphs.archs import ministral3, mistral
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value

SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
KEYS = """
image_token_id image_token_index multimodal_projector_bias projector_hidden_act spatial_merge_size
vision_config vision_feature_layer
"""

ARCH = Multimodal(
    name="mistral3",
    texts={
        "mistral": Text(
            mistral.ARCH, {**SIZES, "vocab_size": 32000, "num_hidden_layers": 32}, theta=10000.0
        ),
        "ministral3": Text(
            ministral3.ARCH, {**SIZES, "vocab_size": 131072, "num_hidden_layers": 34}
        ),
    },
    inert=at_any_value(KEYS.split()),
    beside=("vision_tower", "multi_modal_projector"),
    tied=True,
)
