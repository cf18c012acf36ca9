"""Compile a plan into an existing engine: export and build can be on different machines."""

from pathlib import Path

from lmcast.exporter import targets
from lmcast.exporter.backends.tensorrt.request import Sizes, Sm
from lmcast.exporter.engine.manifest import EngineError, write_manifest
from lmcast.exporter.engine.staging import carry, staged
from lmcast.exporter.progress import Progress, silent
from lmcast.exporter.runtime.engine import Engine
from lmcast.plugins.arguments import checked


@checked
def build(
    engine: Path,
    target: str,
    sms: tuple[Sm, ...] = (),
    sizes: Sizes | None = None,
    progress: Progress = silent,
) -> Engine:
    """Compile the portable graph of an engine, into the engine; return it.

    engine: its directory.
    target: one that compiles plans.
    sms: GPUs to compile for, by default the one at hand.
    sizes: bounds of the plan's calls.

    A plan of the same target and SMs is replaced. Raises EngineError for an engine without a
    portable graph, BackendError where the plan cannot be built; the engine is then unchanged.
    """
    plans_of = targets.get_plans(target)
    source = Engine(engine)
    fields = dict(source.manifest.fields)
    if source.manifest.about.graph.optimized:
        raise EngineError(
            f"{engine}: its graph was rewritten for target {source.manifest.about.target}; plans"
            f" are built from a portable one: export again with --target {targets.PORTABLE}"
        )
    request = plans_of.order(sms, source.context, sizes)
    with staged(engine, progress) as directory:
        replaced = request.file, request.tower_file
        kept = {f.path: f.sha256 for f in source.manifest.files if f.path not in replaced}
        for path in kept:
            carry(engine / path, directory / path)
        entry = plans_of.build(directory, fields, request, progress)
        others = [plan for plan in fields.get("plans", []) if plan["file"] != request.file]
        plans = sorted([*others, entry], key=lambda plan: plan["file"])
        fields |= {"target": target, "plans": plans}
        write_manifest(directory, fields, kept)
    return Engine(engine)
