"""Build a plan in a process of its own, inspect it, and describe it for engine.json.

The plan must be for every SM that was asked for, and have every plugin and fused attention of the
graph: a part that fell back to something slower is an error, not a surprise.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lmcast.calib.formats import WEIGHTS
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt import libraries
from lmcast.exporter.backends.tensorrt.formats import NUMBERS, onnx
from lmcast.exporter.backends.tensorrt.plan import read_plan
from lmcast.exporter.backends.tensorrt.request import Bounds, Request, Sizes, resolve
from lmcast.exporter.backends.tensorrt.towers import ranges
from lmcast.exporter.backends.tensorrt.worker import Job
from lmcast.exporter.engine.description import Vision
from lmcast.exporter.engine.names import ROOT
from lmcast.exporter.progress import Progress
from lmcast.exporter.vision.processor import features
from lmcast.plugins.records import read

WORKER = Job.__module__
# Of a build: tests/benchmarks/plans.py measures both, on two cores.
BASE_BYTES, TIMES_WEIGHTS = 500_000_000, 5
BASE_SECONDS, SECONDS_OF_LAYER = 5, 0.6
# Weights that --widen makes twice as large, as engine.json names them.
NARROW = [name for name, format in WEIGHTS.items() if NUMBERS[onnx(format.scheme.element)].wider]
AHEAD = "visible_ends"  # the input by which tokens see others behind them
OF_LIBRARY = ("library", "cuda", "in_place")  # facts that the text's plan says of both
KEPT_LINES = 5  # of the output of a process before it ends


def order(target: str, sms: tuple[int, ...], context: int, sizes: Sizes) -> Request:
    """Return a request that the installed library can fulfil; raises BackendError for any other.

    context: capacity of a row of the engine, in tokens.
    """
    library = libraries.require(target)
    return resolve(target, libraries.choose_sms(library, sms), context, sizes)


def build_plan(
    engine: Path, fields: Mapping[str, Any], request: Request, progress: Progress
) -> dict[str, Any]:
    """Build a plan into an engine directory; return its entry of engine.json.

    fields: of engine.json, which may not be written yet. Raises BackendError, also where the
    library aborts the process or the plan lacks a part.
    """
    layers, graph = fields["layers"], fields["graph"]
    vision = _vision(fields)
    if vision is None and request.max_pixels is not None:
        raise BackendError("--max-pixels: this engine takes no pictures; leave it out")
    weights = weight_bytes(fields) + request.widen * weight_bytes(fields, NARROW)
    memory, seconds = estimate(weights, layers)
    require_memory(weights)
    require_pictures(vision, request)
    progress.say(
        f"building a plan of {layers} layers and {weights / 1e9:.1f} GB of weights: about"
        f" {memory / 1e9:.1f} GB of memory and {seconds:.0f} s"
    )
    folder = ROOT if graph["weights"] == "link" else str(engine.absolute())
    (engine / request.file).parent.mkdir(exist_ok=True)

    def built(graph: str, file: str, axes: Mapping[str, Bounds] | None = None) -> dict[str, Any]:
        given = str(engine / graph), folder, fields["architecture"], str(engine / file)
        return {"file": file, **build_checked(Job(*given, request, axes), progress)}

    entry = {"request": request.as_json(), **built(graph["file"], request.file)}
    if vision is None:
        return entry
    axes = ranges(vision, request)
    tower = {"ranges": axes, **built(vision.file, request.tower_file, axes)}
    return entry | {"vision": {n: v for n, v in tower.items() if n not in OF_LIBRARY}}


def build_checked(job: Job, progress: Progress) -> dict[str, Any]:
    """Build a plan and read it; return the facts about it. Raises BackendError."""
    request, facts = job.request, run(job, progress)
    found = read_plan(Path(job.output))
    products = facts.pop("products")
    if request.target == "tensorrt-rtx":  # nobody has read a plan of the other library yet
        found.check(request, facts["operators"])
        found.check_products(products)
        for problem in found.wider(facts["codes"]):
            progress.warn(problem)
    facts["products"] = dict(Counter(products.values()))
    size = Path(job.output).stat().st_size
    return {**facts, "bytes": size, "fused": dict(found.fused)}


def _vision(fields: Mapping[str, Any]) -> Vision | None:
    """Return what engine.json says of the tower; None where it has none."""
    said = fields.get("vision")
    return None if said is None else read(Vision, json.loads(json.dumps(said)), "vision.")


def weight_bytes(fields: Mapping[str, Any], formats: Collection[str] = ()) -> int:
    """Return the bytes of the weights that engine.json counts; of these formats, if given."""
    counts = fields["weights"].items()
    return sum(entry["bytes"] for name, entry in counts if not formats or name in formats)


def estimate(weights: int, layers: int) -> tuple[int, float]:
    """Return about how many bytes of memory, and seconds, a build will take."""
    return BASE_BYTES + TIMES_WEIGHTS * weights, BASE_SECONDS + SECONDS_OF_LAYER * layers


def require_memory(weights: int) -> None:
    """Refuse a build that would exceed this machine's memory, and be killed."""
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    need, _ = estimate(weights, 0)
    if need > have:
        raise BackendError(
            f"a plan of {weights:,} bytes of weights needs about {need:,} bytes of memory to be"
            f" built; this machine has {have:,}: build on a larger one with `lmcast build`"
        )


def require_pictures(vision: Vision | None, request: Request) -> None:
    """Refuse calls that hold no picture, where its tokens see each other: they are of one call."""
    if vision is None or AHEAD not in vision.text_inputs:
        return
    tokens = features(vision.processor, 1, 1)  # of any size
    if request.max_tokens < tokens:
        raise BackendError(
            f"--max-tokens is {request.max_tokens}; a picture of this model has {tokens} tokens,"
            f" which one call must hold: give {tokens} or more, or an engine of --text-only"
        )


def run(job: Job, progress: Progress) -> dict[str, Any]:
    """Run the worker, and follow it; return its facts about the plan."""
    # -P: nothing is imported from the working directory.
    command = [sys.executable, "-P", "-m", WORKER, job.as_json()]
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=noise, text=True)
        with process:
            try:
                assert process.stdout is not None
                ended = follow(process.stdout, progress)
            finally:
                process.kill()  # after an exception here; ended otherwise
        noise.seek(0)
        said = noise.read().decode(errors="replace").strip().splitlines()
    if "built" in ended:
        built: dict[str, Any] = ended["built"]
        return built
    Path(job.output).unlink(missing_ok=True)
    if "error" in ended:
        raise BackendError(ended["error"])
    last = "; ".join((ended["messages"] or said)[-KEPT_LINES:]) or "nothing"
    status = _status(process.returncode)
    raise BackendError(f"the process that builds the plan ended with {status}; it said: {last}")


def follow(events: Iterator[str], progress: Progress) -> dict[str, Any]:
    """Show the events of a worker until it ends; return the last one, or its messages."""
    messages: deque[str] = deque(maxlen=KEPT_LINES)
    with ExitStack() as stage:
        for line in events:
            match json.loads(line):
                case {"stage": name, "total": int() | None as total}:
                    stage.close()
                    step = stage.enter_context(progress.stage(f"TensorRT: {name}", total))
                case {"done": done}:
                    step(done)
                case {"message": text}:
                    messages.append(" ".join(text.split()))
                case {"built": _} | {"error": _} as event:
                    last: dict[str, Any] = event
                    return last
    return {"messages": list(messages)}


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"status {code}"
