"""Tiny engines on the device, against what eager computes in fp64, which came along with them."""

from pathlib import Path
from typing import Any

import numpy as np

EXPECTED = "expected.npz"
PROMPT, STEPS = 11, 8
NAMES = (
    "llama", "qwen3", "gemma3_text", "gpt_oss", "qwen3_moe", "deepseek_v3", "deepseek_v32",
    "qwen3_next", "kimi_linear", "nemotron_h", "granitemoehybrid", "mimo_v2_flash",
)  # fmt: skip


# Rounding sends tokens of tiny models to other experts: what eager is then off by allows logits of
# zero. So this is in fp16, not bf16, of tokens whose experts are the same.
DTYPE, SEEDS = "float16", 40
TELLING = 0.25  # of the largest logit: a wider bound allows anything


def write(checkpoint: Path, place: Path, sm: int) -> None:
    """Write an engine for a checkpoint, and the logits of rows of tokens.

    Raises RuntimeError where eager is so far from fp64 that they prove nothing.
    """
    import torch

    from lmcast.exporter import export
    from lmcast.exporter.checkpoint import identified
    from lmcast.exporter.dtypes import DTYPES
    from lmcast.exporter.pipeline import understand
    from lmcast.exporter.prove.eager_pass import full_pass
    from lmcast.exporter.prove.parity_report import FLOOR, TIMES

    engine = export(
        checkpoint, place / "engine", "cuda", DTYPE, "copy",
        parity=False, tokenizer=False, sms=(sm,),
    )  # fmt: skip
    source, _ = identified(checkpoint)
    found, kinds = understand(source, (), False), (torch.float64, DTYPES[DTYPE].torch)
    for seed in range(SEEDS):
        rows = drawn(engine.vocab_size, seed)
        counts = torch.full((len(rows),), rows.shape[1])
        at = torch.arange(rows.shape[1]).expand(len(rows), -1)
        logits = full_pass(found, source, torch.from_numpy(rows), counts, kinds, at)
        exact, eager = (logits[kind].double().numpy() for kind in kinds)
        bound = TIMES * np.abs(eager - exact).max() + FLOOR[DTYPE]
        if bound < TELLING * np.abs(exact).max():
            np.savez_compressed(place / EXPECTED, rows=rows, exact=exact, bound=bound)
            return
    raise RuntimeError(f"{place.name}: no bound of {SEEDS} draws proves anything")


def drawn(vocab: int, seed: int) -> np.ndarray:
    random = np.random.Generator(np.random.PCG64(seed))
    return random.integers(0, vocab, (2, PROMPT + STEPS))


def run(engine: Any, place: Path) -> list[np.ndarray]:
    """Return the logits V of both rows behind a prompt and each step: alone, then as a batch whose
    second prompt is shorter."""
    rows = np.load(place / EXPECTED)["rows"]
    got = []
    for row in rows:
        session = engine.session(1)
        got.append(session.append([row[:PROMPT]])[0])
        got += [session.append([[token]])[0] for token in row[PROMPT:]]
    session = engine.session(len(rows))
    got += list(session.append(rows[:, :PROMPT], [PROMPT, PROMPT - 3]))
    for step in range(STEPS):
        tokens = [rows[0, PROMPT + step], rows[1, PROMPT - 3 + step]]
        got += list(session.append(np.array(tokens)[:, None]))
    return got


def compared(got: list[np.ndarray], place: Path) -> dict[str, float]:
    """Return the largest error from fp64, and what parity allows."""
    expected = np.load(place / EXPECTED)
    exact, last = expected["exact"], PROMPT - 1
    want = [exact[r, last + i] for r in range(len(exact)) for i in range(STEPS + 1)]
    want += [exact[r, last - 3 * r + i] for i in range(STEPS + 1) for r in range(len(exact))]
    errors = [np.abs(a - b).max() for a, b in zip(got, want, strict=True)]
    worst = float(np.max(errors))  # NaN if any is
    return {"error": worst, "bound": float(expected["bound"])}
