"""What engine.json and parity.json say, declared once: the records that all readers take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lmcast.exporter.engine.names import AudioFile, GraphFile, VisionFile
from lmcast.exporter.vision.processor import Processor
from lmcast.plugins.annotations import Range
from lmcast.plugins.records import (
    Axis,
    Count,
    FilePath,
    Name,
    Nats,
    Pattern,
    Positive,
    RecordError,
    Sha256,
)

Size = Annotated[int, Range(1, 1 << 24)]  # as of a config: above any dimension of any model
Layers = Annotated[int, Range(1, 4096)]
Tokens = Annotated[int, Range(1, 1 << 32)]
Computed = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Linked:
    """A file of the checkpoint that an engine points into, as it was."""

    path: Annotated[
        str, Pattern(r"[^\0]+", "a path")
    ]  # absolute as a rule, else relative to the engine
    size: Count
    mtime_ns: int
    header_sha256: Sha256
    sha256: Sha256 | None = None  # of all its bytes, where the export has read them


@dataclass(frozen=True)
class Source:
    """A file of the checkpoint that an engine was made from."""

    name: Name
    size: Count
    header_sha256: Sha256


@dataclass(frozen=True)
class State:
    """A state of the graph; axes "B" and "C" are the rows and the capacity of a session."""

    name: Name
    shape: tuple[Literal["B", "C"] | Axis, ...]
    dtype: Computed | Literal["float8_e4m3fn"]

    def __post_init__(self) -> None:
        if self.shape[:1] != ("B",):
            raise RecordError(f"shape is {list(self.shape)}; accepted: axes that begin with B")


@dataclass(frozen=True)
class Graph:
    """The contract of a graph: what a runtime must know to run it."""

    file: GraphFile
    weights: Literal["link", "copy"]
    optimized: bool
    split_experts: bool
    append: Literal["batch", "row"]
    inputs: tuple[tuple[Name, tuple[Name, ...]], ...]
    outputs: tuple[tuple[Name, tuple[Name, ...]], ...]
    states: tuple[State, ...]
    folded: bool = False
    prepack: bool = False
    total_length: bool = False
    least_capacity: Positive = 1
    most_rows: Count = 0
    most_tokens: Count = 0
    anew_beyond: tuple[Positive, ...] = ()
    whole_beyond: Count = 0
    onnxruntime: Annotated[str, Pattern(r"(\d+\.\d+)?", "a version")] = ""
    opsets: Mapping[str, Positive] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TowerGraph:
    """The graph of a tower.

    parameters: of the tower, which Description.parameters does not count.
    optimized, folded, onnxruntime, opsets: as of a Graph.
    """

    inputs: tuple[tuple[Name, tuple[Name, ...]], ...]
    outputs: tuple[tuple[Name, tuple[Name, ...]], ...]
    parameters: Positive
    optimized: bool
    folded: bool = False
    onnxruntime: Annotated[str, Pattern(r"(\d+\.\d+)?", "a version")] = ""
    opsets: Mapping[str, Positive] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Vision(TowerGraph):
    """The graph of the tower that sees pictures, and how they become what it takes; sounds, too.

    text_inputs: what the text's graph takes of pictures, besides what every graph takes.
    """

    file: VisionFile
    text_inputs: tuple[Name, ...]
    processor: Processor


@dataclass(frozen=True, kw_only=True)
class Audio(TowerGraph):
    """The graph of the tower that hears sounds."""

    file: AudioFile


@dataclass(frozen=True)
class Stored:
    """The weights of one format."""

    tensors: Count
    bytes: Count


@dataclass(frozen=True)
class Hub:
    """The model of the Hugging Face Hub that an engine was made from."""

    repository: Name
    revision: Name


@dataclass(frozen=True)
class RecipeQuality:
    """What calibration has measured a recipe to lose: KL in nats, mean over tokens of a text."""

    text: Name
    tokens: Positive
    dtype: Literal["float32"]
    kl: Nats


@dataclass(frozen=True)
class MadeWith:
    """The recipe that an engine was made with; parameters by format, layers by what they round."""

    sha256: Sha256
    formats: Mapping[str, Count]
    inputs: Mapping[str, Count]
    caches: Mapping[str, Count] = field(default_factory=dict)
    quality: RecipeQuality | None = None


@dataclass(frozen=True)
class PlanRequest:
    """What a plan was built for."""

    target: Name
    sms: tuple[Count, ...]
    max_batch: Positive
    max_context: Positive
    max_tokens: Positive
    opt_batch: Positive
    opt_tokens: Positive
    widen: bool = False  # plans of an earlier lmcast do not say
    max_pixels: Positive | None = None  # of a picture; None: as many as the processor makes


@dataclass(frozen=True)
class TowerPlan:
    """The plan of a tower, beside that of a text. ranges: least, usual, most of each axis."""

    file: FilePath
    ranges: Mapping[str, tuple[Positive, Positive, Positive]]
    operators: Mapping[str, Mapping[str, Count]]
    bytes: Count = 0
    # For people alone:
    codes: Any = None
    products: Any = None
    fused: Any = None


@dataclass(frozen=True)
class PlanEntry:
    """A plan of TensorRT. operators: name -> form -> how many."""

    file: FilePath
    request: PlanRequest
    library: Name
    operators: Mapping[str, Mapping[str, Count]]
    in_place: tuple[Name, ...] = ()
    bytes: Count = 0
    vision: TowerPlan | None = None
    # For people alone:
    cuda: Any = None
    codes: Any = None
    products: Any = None
    fused: Any = None


@dataclass(frozen=True)
class Description:
    """What engine.json says, but for the list of its files.

    config: that of the checkpoint, as it was read. matformer: of a slice, as it was given.
    """

    architecture: Name
    config: Mapping[str, Any]
    vocab_size: Size
    parameters: Positive
    active_parameters: Positive
    layers: Layers
    weights: Mapping[str, Stored]
    dtype: Computed
    target: Name
    graph: Graph
    source: tuple[Source, ...]
    linked: tuple[Linked, ...]
    eos_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    inert: tuple[str, ...]
    context: Tokens
    untie: bool = False
    hub: Hub | None = None
    matformer: Mapping[str, Any] | None = None
    recipe: MadeWith | None = None
    plans: tuple[PlanEntry, ...] = ()
    # Whether kernels round inputs of products with 4- and 8-bit weights; exact: that was asked for.
    # '': none would, or an older engine, of which it is not known.
    activations: Literal["", "int8", "exact"] = ""
    sms: tuple[Positive, ...] = ()  # GPUs that the graph has machine code for
    # Other programs -> why there are no files for one; '' where there are, {} where not asked for.
    clients: Mapping[str, str] = field(default_factory=dict)
    vision: Vision | None = None  # None: it takes text alone
    audio: Audio | None = None  # None: it takes no sounds

    def tower(self, file: str) -> TowerGraph:
        """Return what is said of the graph of a tower; KeyError where there is none."""
        found: dict[str, TowerGraph] = {t.file: t for t in (self.vision, self.audio) if t}
        return found[file]

    def __post_init__(self) -> None:
        if (self.graph.weights == "link") != bool(self.linked):
            raise RecordError(
                f"graph.weights is {self.graph.weights}, and linked lists {len(self.linked)} files"
            )
        taken = {name for name, _ in self.graph.inputs}
        if self.vision and (absent := set(self.vision.text_inputs) - taken):
            raise RecordError(
                f"vision.text_inputs has {min(absent)}, which is none of graph.inputs"
            )


@dataclass(frozen=True)
class Compared:
    """One comparison of parity.json."""

    scenario: str
    positions: Count
    error: float
    eager_error: float
    bound: float
    top1: float
    kl: Nats
    passed: bool
    times_eager: float | None
    nothing: float | None = None  # error of logits that say nothing; None: of an older export
    vacuous: bool = False


@dataclass(frozen=True)
class Rounding:
    """What kernels that round inputs change: KL in nats, mean over positions of a text."""

    text: Name
    tokens: Positive
    kl: Nats


REPORT = 1  # the version of what a report of parity holds


@dataclass(frozen=True)
class Subject:
    """What a parity has compared, and by which lmcast: numbers of another are no baseline.

    checkpoint: SHA-256 of its config, and of the sizes and headers of its files. weights: tensors
    by format. prompts: SHA-256 of the ids of given ones, None: drawn.
    """

    lmcast: Name
    checkpoint: Sha256
    target: Name
    weights: Mapping[str, Count]
    recipe: Sha256 | None
    activations: str
    exact: bool
    prompts: Sha256 | None


@dataclass(frozen=True)
class Parity:
    """What was measured at export."""

    dtype: Computed
    tokens: Count
    beyond_window: bool | None
    passed: bool
    times_allowed: float
    floor: float
    bisection: Mapping[str, Any] | None
    results: tuple[Compared, ...]
    ran: Literal["graph", "plan"] = "graph"
    texts: Mapping[str, str] = field(default_factory=dict)
    quality: None = None  # is measured on request
    rounding: Rounding | None = None
    version: Literal[1] | None = None  # None: of an earlier lmcast, as the next
    subject: Subject | None = None

    def __post_init__(self) -> None:
        if not self.results:
            raise RecordError("results is empty")


def said_of(clients: Mapping[str, str], more: bool = False) -> list[str]:
    """Return which other programs open an engine, and why others do not, a line for each reason.

    more: whether it takes more than text, which they do not give it.
    """
    able = ", ".join(name for name, why in clients.items() if not why)
    of = " for text alone" if more else ""
    lines = [f"other programs open it too{of}: {able}"] if able else []
    for why in dict.fromkeys(filter(None, clients.values())):
        names = ", ".join(name for name, other in clients.items() if other == why)
        lines.append(f"not for {names}: {why}")
    return lines
