"""Gemma 3n E2B and E4B: the text model of gemma3n_text beside towers of pictures and of sound."""

from lmcast.graphs.archs import gemma3n_text
from lmcast.graphs.archs.multimodal import Multimodal, Text
from lmcast.graphs.config.inert import at_any_value
from lmcast.graphs.towers import mobilenet_v5, usm

DEFAULTS = {
    "vocab_size": 262400,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_hidden_layers": 35,
    "num_attention_heads": 8,
}
PICTURES, SOUNDS = mobilenet_v5.TOWER, usm.TOWER

ARCH = Multimodal(
    name="gemma3n",
    texts={"gemma3n_text": Text(gemma3n_text.ARCH, DEFAULTS)},
    inert=at_any_value({*PICTURES.keys, *SOUNDS.keys}),
    beside=(*PICTURES.modules, *SOUNDS.modules),
    tied=True,
    tower=PICTURES,
    audio=SOUNDS,
)
