"""Engines of target cuda on a fake GPU, by ONNX Runtime itself: calls of a session, and their log.

`exported_calls` runs in a process of its own (fake_cuda.on_fake_gpu) without Triton's interpreter,
in which nothing is compiled. Nothing may be placed on the CPU.
"""

import json
import shutil
from itertools import count
from pathlib import Path
from typing import Any

from fake_cuda import Log, note, on_fake_gpu

NUMBERS = count(1)  # of CUDA graphs
CAPACITY, PROMPT = 64, 5
HOST = "total_length"  # the input that stays on the host


WHICH = ("prompt", "first", "step", "again", "ragged", "grown")
Placed = dict[str, list[str]]  # operators by the provider that they are placed on


def on_gpu(engines: dict[str, tuple[str, str]], sm: int = 90, **options: Any) -> tuple[Any, Log]:
    """Return what `exported_calls` does on a fake GPU, and the log."""
    run = on_fake_gpu(
        exported_calls, engines, sm, options, sm=sm, timeout=3600, TRITON_INTERPRET="0"
    )
    return run.result, run.log


def shortened(source: Any, to: Path) -> Path:
    """Write a checkpoint, or that of a case, with its weights in bfloat16, which can be linked."""
    from safetensors.torch import load_file, save_file
    from tiny import make

    if isinstance(source, Path):
        shutil.copytree(source, to)
    else:
        make(source, to)
    tensors = load_file(file := to / "model.safetensors")
    save_file({name: t.bfloat16() for name, t in tensors.items()}, file, {"format": "pt"})
    return to


def exported_calls(
    engines: dict[str, tuple[str, str]], sm: int, options: dict[str, Any]
) -> dict[str, Placed]:
    """Export checkpoints, name -> (checkpoint, folder of the engine), and call each as `calls`."""
    from lmcast.exporter import export

    found = {}
    for name, (checkpoint, folder) in engines.items():
        print(name, flush=True)
        given = {"dtype": "bfloat16", "parity": False, "tokenizer": False, "sms": (sm,), **options}
        export(checkpoint, folder, "cuda", **given)
        found[name] = calls(folder, name)
        calls(folder, f"{name}, captured", capture=True)
    return found


def calls(folder: str, engine: str, capture: bool = False) -> Placed:
    """Run a prompt, steps, a step of rows of different lengths, and a step after growth.

    capture: steps as CUDA graphs. Notes in the log say where each call begins: 'ENGINE: WHICH'.
    """
    about = json.loads(Path(folder, "engine.json").read_text())
    graph = about["graph"]
    made = session(folder, capture)
    room = max(CAPACITY, graph["least_capacity"])
    longest = about["context"]
    one = Rows(made, [0], room, longest)
    for which, tokens in zip(WHICH, (PROMPT, 1, 1, 1), strict=False):
        one.append(tokens, f"{engine}: {which}")
    for which, more in zip(WHICH[4:], (1, 2), strict=True):
        Rows(made, [PROMPT, 3], more * room, longest).append(1, f"{engine}: {which}")
    parts = made.get_provider_graph_assignment_info()
    return {part.ep_name: [n.op_type for p in parts for n in p.get_nodes()] for part in parts}


def session(folder: str, capture: bool) -> Any:
    from lmcast_native import LIBRARY

    from lmcast.exporter.backends.onnxruntime import opened, session_options
    from lmcast.exporter.engine.manifest import read_manifest

    manifest = read_manifest(Path(folder))
    options = session_options(manifest, manifest.about.graph)
    if manifest.about.sms:  # else operators of ours are run by their bodies
        options.register_custom_ops_library(str(LIBRARY))
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    given = [("CUDAExecutionProvider", {"enable_cuda_graph": str(int(capture))})]
    return opened(manifest, None, options, given)


class Rows:
    """Rows of a session with states on the device, in which they are updated.

    room: tokens of a row in the states. longest: those that a row may hold.
    """

    def __init__(self, made: Any, lengths: list[int], room: int, longest: int):
        self.made, self.lengths, self.room, self.number = made, lengths, room, next(NUMBERS)
        self.total = min(room, longest)  # what a captured graph may be told
        self.states = {i.name: self.zeros(i) for i in made.get_inputs() if i.name.endswith(".past")}
        self.bindings: dict[int, Any] = {}  # by tokens: a CUDA graph keeps the addresses

    def zeros(self, value: Any, tokens: int = 1) -> Any:
        """Return zeros on the device for an input of the graph."""
        import onnxruntime as ort
        from onnx import TensorProto

        axes = {"B": len(self.lengths), "T": tokens, "R": 1, "C": self.room, "F": 1}
        shape = [n if isinstance(n, int) else axes[n] for n in value.shape]
        kind = {"float": "FLOAT"}.get(value.type[7:-1], value.type[7:-1].upper())
        return ort.OrtValue.ortvalue_from_shape_and_type(
            shape, getattr(TensorProto, kind), "cuda", 0
        )

    def append(self, tokens: int, name: str) -> None:
        """Run one call, whose log begins with a note of this name."""
        import numpy as np
        import onnxruntime as ort

        if tokens not in self.bindings:
            binding, held = self.made.io_binding(), {}
            for given in self.made.get_inputs():
                value = self.states.get(given.name)
                if given.name == HOST:
                    value = ort.OrtValue.ortvalue_from_numpy(np.array([self.total], np.int32))
                held[given.name] = value = value or self.zeros(given, tokens)
                binding.bind_ortvalue_input(given.name, value)
                if given.name in self.states:
                    present = given.name.removesuffix("past") + "present"
                    binding.bind_ortvalue_output(present, value)
            binding.bind_output("logits", "cuda")
            self.bindings[tokens] = binding, held
        binding, held = self.bindings[tokens]
        batch = len(self.lengths)
        note(f"{name}, given")  # what follows is no part of the call before
        held["input_ids"].update_inplace(np.ones((batch, tokens), np.int64))
        held["cache_lengths"].update_inplace(np.array(self.lengths))
        held["token_counts"].update_inplace(np.full(batch, tokens))
        options = ort.RunOptions()
        # One graph for each set of addresses; prompts, whose sizes differ, are run as they are.
        number = -1 if tokens > 1 else self.number
        options.add_run_config_entry("gpu_graph_id", str(number))
        note(name)
        self.made.run_with_iobinding(binding, options)
        note(f"{name}, done")  # what follows is no part of the call
        self.lengths = [length + tokens for length in self.lengths]


def counted(log: Log) -> dict[str, int]:
    """Return how many launches are of ONNX Runtime's own kernels, products, and ours."""
    launches = log.launches
    ours = sum(event.ours for event in launches)
    products = sum(event.kind == "blas" for event in launches)
    return {"kernels": len(launches) - ours - products, "products": products, "ours": ours}
