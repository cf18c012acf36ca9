"""Layers with Gated DeltaNets beside full attention and Hugging Face: a table, and linear.png.

    python tests/benchmarks/linear.py [--scale 4] [--longest 65536] [--rounds 3]

Two models of two layers, with the widths of Qwen3-Next divided by --scale: in one both layers are
Gated DeltaNets, in the other its gated full attention; the feed-forward is narrow, so that the
mixers show. Prefill is a whole prompt of that length; decode, one token behind so many. Ours is
the engine for `cpu`, with 2 threads like Hugging Face eager, both in float32. What takes longer
than a minute is not measured at greater lengths.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import children
import numpy as np

PICTURE = Path(__file__).with_suffix(".png")
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
KINDS = ("linear_attention", "full_attention")
WAYS = ("ours, linear", "Hugging Face, linear", "ours, full")
PREFILL_AIM, DECODE_AIM = 3.0, 5.0
PATIENCE = 60.0  # seconds: a longer run is the last of its way
STEPS = 8  # decoding steps in one measurement


def config(kind: str, scale: int) -> dict[str, Any]:
    """Return settings of Hugging Face's config class."""
    return {
        "vocab_size": 256,
        "hidden_size": 2048 // scale,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 16 // scale,
        "num_key_value_heads": max(1, 2 // scale),
        "head_dim": 256,
        "linear_num_key_heads": 16 // scale,
        "linear_num_value_heads": 32 // scale,
        "layer_types": [kind] * 2,
        "mlp_only_layers": [0, 1],
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "max_position_embeddings": 262144,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e7,
            "partial_rotary_factor": 0.25,
        },
        "tie_word_embeddings": True,
    }


def prepare(directory: str, kind: str, scale: int) -> None:
    """Write a random checkpoint and its engine."""
    import torch
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    from lmcast.exporter import export

    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**config(kind, scale)))
    model.save_pretrained(f"{directory}/checkpoint")
    export(f"{directory}/checkpoint", f"{directory}/engine", parity=False, tokenizer=False)


Step = Callable[[int], float]  # tokens -> seconds


def ours(directory: str, threads: int) -> tuple[Step, Step]:
    """Return prefill of so many tokens, and a decoding step behind so many."""
    from lmcast.exporter import load

    engine = load(f"{directory}/engine", threads=threads)

    def prefill(tokens: int) -> float:
        ids = np.arange(tokens)[None] % 251
        session = engine.session(1)
        session.reserve(tokens)
        start = time.perf_counter()
        session.append(ids)
        return time.perf_counter() - start

    def decode(tokens: int) -> float:
        session = engine.session(1)
        session.append([[1, 2, 3]])
        session.reserve(tokens + STEPS)
        session.lengths[:] = tokens  # what is held are zeros: the time is the same
        start = time.perf_counter()
        for _ in range(STEPS):
            session.append([[5]])
        return (time.perf_counter() - start) / STEPS

    return prefill, decode


def hugging_face(directory: str, threads: int) -> tuple[Step, Step]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        f"{directory}/checkpoint", dtype=torch.float32, attn_implementation="eager"
    ).eval()

    @torch.no_grad()
    def run(ids: torch.Tensor, cache: Any) -> Any:
        # Its cache cannot tell positions and masks without full attention, and nothing needs them.
        given = {"position_ids": torch.arange(ids.shape[1])[None]}
        given |= {"attention_mask": dict.fromkeys(KINDS), "logits_to_keep": 1}
        return model(ids, past_key_values=cache, use_cache=True, **given).past_key_values

    def prefill(tokens: int) -> float:
        ids = torch.arange(tokens)[None] % 251
        start = time.perf_counter()
        run(ids, None)
        return time.perf_counter() - start

    def decode(tokens: int) -> float:
        cache = run(torch.tensor([[1, 2, 3]]), None)  # of linear layers: the same at any length
        run(torch.tensor([[5]]), cache)
        start = time.perf_counter()
        for _ in range(STEPS):
            run(torch.tensor([[5]]), cache)
        return (time.perf_counter() - start) / STEPS

    return prefill, decode


def measure(way: str, directory: str, threads: int, longest: int, rounds: int) -> dict[str, Any]:
    """Return the seconds of prefill and decode by length, in a process of its own."""
    make = hugging_face if way.startswith("Hugging") else ours
    found: dict[str, dict[str, float]] = {}
    for name, step in zip(("prefill", "decode"), make(directory, threads), strict=True):
        found[name] = {}
        step(LENGTHS[0])
        for length in LENGTHS:
            if length > longest or max(found[name].values(), default=0) > PATIENCE:
                break
            first = step(length)
            times = [first, *(step(length) for _ in range(rounds - 1) if first < PATIENCE / 6)]
            found[name][str(length)] = median(times)
    return found


Found = dict[str, dict[str, dict[str, float]]]


def text(found: Found) -> str:
    rows = []
    for length in map(str, LENGTHS):
        cells = [
            f"{times[length] * 1e3:.1f}" if length in (times := found[way][phase]) else "-"
            for phase in ("prefill", "decode")
            for way in WAYS
        ]
        rows.append([length, *cells])
    columns = ["tokens", *(f"{phase}: {way} ms" for phase in ("prefill", "decode") for way in WAYS)]
    lines = [children.table(columns, rows)]
    mine, theirs, _ = (found[way] for way in WAYS)
    for phase, aim in (("prefill", PREFILL_AIM), ("decode", DECODE_AIM)):
        both = [n for n in mine[phase] if n in theirs[phase]]
        ratios = [theirs[phase][n] / mine[phase][n] for n in both]
        lines.append(
            f"{phase}: {min(ratios):.2f} to {max(ratios):.2f} times as fast as Hugging Face"
            f" (median {median(ratios):.2f}, aim {aim:g})"
        )
    each = [seconds / int(n) for n, seconds in mine["prefill"].items()]
    flat = list(mine["decode"].values())
    lines.append(
        f"linear prefill takes {min(each) * 1e6:.1f} to {max(each) * 1e6:.1f} µs a token, a step"
        f" {min(flat) * 1e3:.2f} to {max(flat) * 1e3:.2f} ms, at all lengths"
    )
    return "\n".join(lines)


def draw(found: Found, scale: int) -> None:
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axes, phase in zip(both, ("prefill", "decode"), strict=True):
        for way in WAYS:
            times = {int(n): seconds * 1e3 for n, seconds in found[way][phase].items()}
            axes.plot(list(times), list(times.values()), "o-", label=way, markersize=4)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="tokens", ylabel="ms", title=phase)
        axes.grid(alpha=0.3, which="both")
    both[0].legend(fontsize=8)
    figure.suptitle(f"Two layers of Qwen3-Next, widths / {scale}, CPU, float32", fontsize=10)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scale", type=int, default=4, help="widths are divided by it")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as work:
        for kind in KINDS:
            given = {"directory": f"{work}/{kind}", "kind": kind, "scale": options.scale}
            children.run("linear", "prepare", **given)
        for way in WAYS:
            kind = KINDS[way.endswith("full")]
            given = {"way": way, "directory": f"{work}/{kind}", "threads": options.threads}
            given |= {"longest": options.longest, "rounds": options.rounds}
            found[way] = children.run("linear", "measure", **given).result
    print(text(found))
    draw(found, options.scale)


if __name__ == "__main__":
    main()
