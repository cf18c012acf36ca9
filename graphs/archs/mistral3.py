"""Mistral Small 3.1 to 4, Large 3, Ministral 3: the text of one of three families, and Pixtral."""

from lmcast.graphs.archs import ministral3, mistral, mistral4
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.towers import pixtral

SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}

ARCH = Multimodal(
    name="mistral3",
    texts={
        "mistral": Text(
            mistral.ARCH, {**SIZES, "vocab_size": 32000, "num_hidden_layers": 32}, theta=10000.0
        ),
        "ministral3": Text(
            ministral3.ARCH, {**SIZES, "vocab_size": 131072, "num_hidden_layers": 34}
        ),
        "mistral4": Text(mistral4.ARCH, {}),
    },
    inert=at_any_value(("image_token_id", pixtral.ENCODER, *pixtral.TOWER.keys)),
    beside=pixtral.TOWER.modules,
    tied=True,
    tower=pixtral.TOWER,
)
