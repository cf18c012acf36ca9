"""One model, three runtimes, float32, the same token ids picked greedily.

Each function runs in a process of its own and returns what `timed` does.
"""

import importlib
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lmcast.exporter.bench import READ_BYTES, Bandwidth, Peaks

WARM_RUNS = 3

# Starts a sequence and yields the first token, then one more at each step.
Start = Callable[[np.ndarray], Iterable[int]]


def timed(load: Callable[[], Start], prompt: np.ndarray, new: int) -> dict[str, Any]:
    """Load, run once cold, and then warm; prompt: int64 T. Importing libraries is not loading."""
    peaks, runs = Peaks(), []
    with peaks.watching():
        wall, cpu = time.perf_counter(), time.process_time()
        start = load()
        loaded, loaded_cpu = time.perf_counter() - wall, time.process_time() - cpu
        for _ in range(1 + WARM_RUNS):
            begin = time.perf_counter()
            tokens = iter(start(prompt))
            ids = [next(tokens)]
            first = time.perf_counter() - begin
            ids += [next(tokens) for _ in range(new)]
            runs.append((first, time.perf_counter() - begin - first))
    warm = runs[1:]
    return {
        "load": loaded,
        "load CPU": loaded_cpu,
        "first token": loaded + runs[0][0],
        "prefill": len(prompt) / sorted(first for first, _ in warm)[len(warm) // 2],
        "decode": new / sorted(rest for _, rest in warm)[len(warm) // 2],
        "private": peaks.private,
        "rss": peaks.rss,
        "ids": ids,
    }


def lmcast(directory: str, threads: int, prompt: list[int], new: int) -> dict[str, Any]:
    from lmcast.exporter.bench import weight_bytes_per_step
    from lmcast.exporter.runtime.engine import Engine

    importlib.import_module("lmcast.exporter.backends.onnxruntime")

    def load() -> Start:
        engine = Engine(directory, threads)
        assert engine.runner

        def start(ids: np.ndarray) -> Iterable[int]:
            session = engine.session(1)
            logits = session.append(ids[None])
            while True:
                token = int(logits[0].argmax())
                yield token
                logits = session.append([[token]])

        return start

    result = timed(load, np.array(prompt), new)
    weights = weight_bytes_per_step(Engine(directory))
    # Measured side by side with decode: a shared machine is not the same a minute later.
    result["share"] = result["decode"] * weights / Bandwidth(threads).bandwidth(READ_BYTES)
    return result


def genai(directory: str, threads: int, prompt: list[int], new: int) -> dict[str, Any]:
    import onnxruntime_genai as og

    path = Path(directory, "genai_config.json")
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config, indent=4))

    def load() -> Start:
        model = og.Model(directory)

        def start(ids: np.ndarray) -> Iterable[int]:
            parameters = og.GeneratorParams(model)
            length = len(ids) + new + 1
            parameters.set_search_options(
                do_sample=False, batch_size=1, min_length=length, max_length=length
            )
            generator = og.Generator(model, parameters)
            generator.append_tokens(ids[None].astype(np.int32))
            while True:
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])

        return start

    return timed(load, np.array(prompt), new)


def eager(
    directory: str, threads: int, prompt: list[int], new: int, dtype: str = "float32"
) -> dict[str, Any]:
    """Hugging Face transformers with its default attention and experts."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)

    def load() -> Start:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()

        def start(ids: np.ndarray) -> Iterable[int]:
            cache = DynamicCache(config=model.config)
            given = torch.from_numpy(ids)[None]
            while True:
                with torch.inference_mode():
                    logits = model(
                        given, past_key_values=cache, use_cache=True, logits_to_keep=1
                    ).logits
                given = logits[:, -1].argmax(-1, keepdim=True)
                yield int(given)

        return start

    return timed(load, np.array(prompt), new)
