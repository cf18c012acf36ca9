"""One model in each runtime: the same token ids, greedily continued. Each call is a process.

A function is given the model's files, and returns a record for each workload, of `measured`. It
imports no more than its own environment has.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WARM_TOKENS = 16  # of a prompt before the clock runs: pools of threads and memory are made then


@dataclass(frozen=True)
class Run:
    """What came of one prompt of `rows` rows: ids of the first row; seconds."""

    ids: list[int]
    prefill: float  # until the last row has its first token
    decode: float  # of a step, from there on


# (ids: int64 [rows, T], new tokens) -> what came.
Start = Callable[[np.ndarray, int], Run]


def measured(load: Callable[[], Start], workloads: list[list[int]], new: int) -> dict[str, Any]:
    """Load and run `[rows, prompt tokens]` after `[rows, prompt tokens]`, each once and warm.

    Tokens a second are of all rows. Importing a runtime is not loading.
    """
    begin = time.perf_counter()
    start = load()
    found: dict[str, Any] = {"load": time.perf_counter() - begin, "workloads": []}
    for rows, length in workloads:
        # Small ids are special tokens in some vocabularies; the smallest vocabulary has 49,152.
        ids = np.random.default_rng(length).integers(1000, 49_000, (rows, length))
        start(ids[:, :WARM_TOKENS], 2)
        run = start(ids, new)
        speeds = {"prefill": rows * length / run.prefill, "decode": rows / run.decode}
        found["workloads"].append(speeds | {"ids": run.ids})
    return found


def stepped(steps: Iterator[int], new: int) -> Run:
    """Time a generator that yields the first row's token after the prompt and after each step."""
    begin = time.perf_counter()
    ids = [next(steps)]
    first = time.perf_counter()
    ids += [next(steps) for _ in range(new - 1)]
    return Run(ids, first - begin, (time.perf_counter() - first) / (new - 1))


def lmcast(path: str, threads: int, context: int, **given: Any) -> dict[str, Any]:
    from lmcast.exporter.runtime.engine import Engine

    def load() -> Start:
        engine = Engine(path, threads)
        assert engine.runner  # which is made when it is first asked for

        def steps(ids: np.ndarray) -> Iterator[int]:
            session = engine.session(len(ids))
            while True:
                token = session.append(ids).argmax(-1)
                yield int(token[0])
                ids = token[:, None]

        return lambda ids, new: stepped(steps(ids), new)

    return measured(load, **given)


def genai(path: str, threads: int, context: int, **given: Any) -> dict[str, Any]:
    import onnxruntime_genai as og

    config = json.loads(Path(path, "genai_config.json").read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    Path(path, "genai_config.json").write_text(json.dumps(config, indent=4))

    def load() -> Start:
        model = og.Model(path)

        def steps(ids: np.ndarray, new: int) -> Iterator[int]:
            parameters = og.GeneratorParams(model)
            length = ids.shape[1] + new
            parameters.set_search_options(
                do_sample=False, batch_size=len(ids), min_length=length, max_length=length
            )
            generator = og.Generator(model, parameters)
            generator.append_tokens(ids.astype(np.int32))
            while True:
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])

        return lambda ids, new: stepped(steps(ids, new), new)

    return measured(load, **given)


hosted = genai  # an engine of lmcast's, opened by the same program


def openvino(path: str, threads: int, context: int, **given: Any) -> dict[str, Any]:
    import openvino as ov
    import openvino_genai

    def load() -> Start:
        pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        config = pipeline.get_generation_config()
        config.do_sample, config.ignore_eos = False, True

        def start(ids: np.ndarray, new: int) -> Run:
            config.max_new_tokens = new
            whole = ov.Tensor(np.ones_like(ids))
            made = pipeline.generate(openvino_genai.TokenizedInputs(ov.Tensor(ids), whole), config)
            times = made.perf_metrics.raw_metrics
            ends = times.m_new_token_times  # milliseconds, where the others are microseconds
            decode = (ends[-1] - ends[0]) / (new - 1) / 1e3
            return Run(list(made.tokens[0]), max(times.m_times_to_first_token) / 1e6, decode)

        return start

    return measured(load, **given)


def llamacpp(path: str, threads: int, context: int, **given: Any) -> dict[str, Any]:
    """A server without its port: rows are requests that are made at once."""
    from concurrent.futures import ThreadPoolExecutor

    import xllamacpp

    rows = max(rows for rows, _ in given["workloads"])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_parallel, parameters.n_ctx = rows, rows * context
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    parameters.cache_prompt = parameters.warmup = False

    def load() -> Start:
        server = xllamacpp.Server(parameters)

        def ask(ids: list[int], new: int, arrived: list[float]) -> list[int]:
            request = {"prompt": ids, "n_predict": new, "temperature": 0, "ignore_eos": True}
            request |= {"cache_prompt": False, "stream": True, "logprobs": 1}
            found: list[int] = []

            def receive(part: dict[str, Any]) -> None:
                tokens = [
                    t["id"] for t in (part["choices"][0]["logprobs"] or {}).get("content", ())
                ]
                arrived.extend(time.perf_counter() for _ in tokens)
                found.extend(tokens)

            server.handle_completions(request, receive)
            return found

        def start(ids: np.ndarray, new: int) -> Run:
            arrived: list[list[float]] = [[] for _ in ids]
            begin = time.perf_counter()
            with ThreadPoolExecutor(len(ids)) as pool:
                tokens = list(pool.map(ask, ids.tolist(), [new] * len(ids), arrived))
            first = max(times[0] for times in arrived)
            later = sorted(t for times in arrived for t in times if t > first)
            decode = len(ids) * (later[-1] - first) / len(later)
            return Run(tokens[0], first - begin, decode)

        return start

    return measured(load, **given)


def eager(path: str, threads: int, context: int, **given: Any) -> dict[str, Any]:
    """Hugging Face transformers with its defaults; weights as they are stored."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(threads)

    def load() -> Start:
        where = Path(path)
        if where.suffix == ".gguf":  # which is widened
            options = {"gguf_file": where.name, "dtype": "float32"}
            where = where.parent
        else:
            options = {"dtype": "auto"}
        model = AutoModelForCausalLM.from_pretrained(where, **options).eval()

        def steps(ids: np.ndarray) -> Iterator[int]:
            cache, taken = DynamicCache(config=model.config), torch.from_numpy(ids)
            while True:
                with torch.inference_mode():
                    logits = model(
                        taken, past_key_values=cache, use_cache=True, logits_to_keep=1
                    ).logits
                taken = logits[:, -1].argmax(-1, keepdim=True)
                yield int(taken[0])

        return lambda ids, new: stepped(steps(ids), new)

    return measured(load, **given)
