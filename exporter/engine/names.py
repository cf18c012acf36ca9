"""Names of the files in an engine directory."""

from collections.abc import Iterable
from typing import Literal, get_args

ENGINE_JSON = "engine.json"
RECIPE_JSON = "recipe.json"  # in a recipe
SIGNATURE = "model.sig"  # of all the others, engine.json too, so that no list can hold it
GraphFile = Literal["engine.onnx"]  # model.onnx is what other programs look for
VisionFile = Literal["vision.onnx"]
AudioFile = Literal["audio.onnx"]
MODEL: str = get_args(GraphFile)[0]
VISION: str = get_args(VisionFile)[0]
AUDIO: str = get_args(AudioFile)[0]
TOWERS = {"vision": VISION, "audio": AUDIO}  # by the name of the tower, and of its field
GRAPHS = (MODEL, *TOWERS.values())
PARITY = "parity.json"
TOKENIZER = "tokenizer.json"
TEMPLATE = "chat_template.jinja"  # the default; others by name, as transformers stores them
TEMPLATES = "additional_chat_templates"
GENERATION = "generation_config.json"
CARD = "README.md"
WEIGHTS = "weights"  # the folder of safetensors files
# How their names begin: weights of the checkpoint, those that passes have made, machine code.
STORED, GRAPH, KERNELS = "model", "graph", "kernels"  # the first, of both graphs
ROOT = "/"  # a graph names linked weights by their absolute path without it


def own_files(graph: str) -> str:
    """Return how names of files of weights begin that a graph alone reads."""
    return "" if graph == MODEL else f"{graph.partition('.')[0]}-"


def is_read_whole(path: str) -> bool:
    """Whether a file is a graph, machine code or a text: what is read in full wherever it is
    used, however large. A tokenizer.json of 30 MB is hashed in a fiftieth of a second."""
    texts = (*GRAPHS, PARITY, TOKENIZER, TEMPLATE, GENERATION)
    code = tuple(f"{WEIGHTS}/{own_files(graph)}{KERNELS}-" for graph in GRAPHS)
    return path in texts or path.startswith((f"{TEMPLATES}/", *code))


def is_read_by(path: str, graph: str) -> bool:
    """Whether a file of weights may hold some of a graph, one of GRAPHS."""
    name = path.removeprefix(f"{WEIGHTS}/")
    others = tuple(own_files(other) for other in GRAPHS if other not in (MODEL, graph))
    own = name.startswith(own_files(graph)) and not name.startswith(others)
    return name != path and (own or name.startswith(f"{STORED}-"))


def templates(paths: Iterable[str]) -> dict[str, str]:
    """Return an engine's chat templates among its files: name -> path, "default" for TEMPLATE."""
    own = f"{TEMPLATES}/"
    return {
        "default" if path == TEMPLATE else path.removeprefix(own).removesuffix(".jinja"): path
        for path in paths
        if path == TEMPLATE or path.startswith(own)
    }
