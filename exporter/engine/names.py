"""Names of the files in an engine directory."""

from collections.abc import Iterable
from typing import Literal, get_args

ENGINE_JSON = "engine.json"
RECIPE_JSON = "recipe.json"  # in a recipe
SIGNATURE = "model.sig"  # of all the others, engine.json too, so that no list can hold it
GraphFile = Literal["engine.onnx"]  # model.onnx is what other programs look for
MODEL: str = get_args(GraphFile)[0]
PARITY = "parity.json"
TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"  # the default; others by name, as transformers stores them
TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
CARD = "README.md"
WEIGHTS = "weights"  # the folder of safetensors files
# How their names begin: weights of the checkpoint, those that passes have made, machine code.
STORED, GRAPH, KERNELS = "model", "graph", "kernels"
ROOT = "/"  # a graph names linked weights by their absolute path without it


def is_read_whole(path: str) -> bool:
    """Whether a file is the graph, machine code or a text: what is read in full wherever it is
    used, however large. A tokenizer.json of 30 MB is hashed in a fiftieth of a second."""
    texts = (MODEL, PARITY, TOKENIZER, TEMPLATE, GENERATION)
    return path in texts or path.startswith((f"{TEMPLATES}/", f"{WEIGHTS}/{KERNELS}-"))


def templates(paths: Iterable[str]) -> dict[str, str]:
    """Return an engine's chat templates among its files: name -> path, "default" for TEMPLATE."""
    own = f"{TEMPLATES}/"
    return {
        "default" if path == TEMPLATE else path.removeprefix(own).removesuffix(".jinja"): path
        for path in paths
        if path == TEMPLATE or path.startswith(own)
    }
