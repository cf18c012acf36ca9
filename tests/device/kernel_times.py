"""Times of our kernels through PyTorch and Triton, at the sizes that are compared elsewhere."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from kernel_works import LATENTS, MODELS, SPREAD, Work, attention_work, experts_work
from linear_works import DeltaNet, linear_work
from triton import testing
from triton_kernels import PEAKS

from lmcast.plugins import plugin

CONTEXTS, LENGTHS, TOKENS = (4096, 32768, 131072), (1, 256, 1024, 8192), (1, 16, 512)
# The shape whose times ONNX Runtime and flash-linear-attention publish.
QWEN3_8 = DeltaNet("Qwen3.8", 48, 16, 128, 128)


def works(device: str) -> Iterator[Work]:
    yield from (attention_work(replace(LATENTS[0], context=n), 1, device, SPREAD) for n in CONTEXTS)
    yield from (linear_work(QWEN3_8, 1, n, device, SPREAD) for n in LENGTHS)
    yield from chain.from_iterable(
        (experts_work(model, n, device) for n in TOKENS) for model in MODELS
    )


def seconds_of(run: Callable[[], None], device: str) -> float:
    """Return the time of a run on a GPU, by a CUDA graph; elsewhere that of one, which only shows
    that all of it can be run."""
    if device == "cuda":
        milliseconds: float = testing.do_bench_cudagraph(run, return_mode="median")
        return milliseconds / 1e3
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def lines(device: str = "cuda") -> Iterator[dict[str, Any]]:
    known = PEAKS.get(torch.cuda.get_device_name()) if device == "cuda" else (1.0, 1.0)
    for work in works(device):
        kernel = plugin.find(work.operator).kernels["triton"]()

        def run(function: Any = kernel, calls: Any = work.calls) -> None:
            for args in calls:
                function(*args)

        seconds = seconds_of(run, device) / len(work.calls)
        line = {"operator": work.operator, "model": work.model, "tokens": work.places}
        line |= {"microseconds": 1e6 * seconds, "bytes per second": work.moved / seconds}
        if work.operator in ("mla_attention", "sparse_attention"):
            line["context"] = work.calls[0][3].shape[1]
        if known:
            limit = max(work.moved / known[0], work.flops / known[1])
            line["share of limit"] = limit / seconds
        yield line
