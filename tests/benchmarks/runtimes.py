"""One model in an engine and in Hugging Face, the same token ids picked greedily.

Each function runs in a process of its own and returns what `timed` does.
"""

import importlib
import time
from collections.abc import Callable, Iterable
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
