"""Kimi K2.5 and K2.6: the text of Kimi K2 beside MoonViT."""

from lmcast.graphs.archs import deepseek_v3, kimi_k2
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.towers import moonvit

ARCH = Multimodal(
    name="kimi_k25",
    # Files of the hub name their own class, Hugging Face's the one that it reads them with.
    texts={"deepseek_v3": Text(deepseek_v3.ARCH, {}), "kimi_k2": Text(kimi_k2.ARCH, {})},
    inert=at_any_value(("media_placeholder_token_id", *moonvit.TOWER.keys)),
    beside=moonvit.TOWER.modules,
    tied=True,
    tower=moonvit.TOWER,
)
