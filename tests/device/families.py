"""Tiny engines on the device, against what eager computes in fp64, which came along with them."""

from pathlib import Path
from typing import Any

import numpy as np

EXPECTED = "expected.npz"
PROMPT, LESS, STEPS = 11, 3, 8  # tokens; by how many a prompt beside another is shorter
NAMES = (
    "llama", "qwen3", "gemma3_text", "gpt_oss", "qwen3_moe", "deepseek_v3", "deepseek_v32",
    "qwen3_next", "kimi_linear", "nemotron_h", "granitemoehybrid", "mimo_v2_flash",
)  # fmt: skip


DTYPE = "bfloat16"


def write(checkpoint: Path, place: Path, sm: int) -> None:
    """Write an engine for a checkpoint, and the logits of rows of tokens, which are such that
    rounding does not decide them.

    Raises RuntimeError where eager is so far from fp64 that they prove nothing.
    """
    from lmcast.exporter import export
    from lmcast.exporter.checkpoint import identified
    from lmcast.exporter.dtypes import DTYPES
    from lmcast.exporter.pipeline import understand
    from lmcast.exporter.prove.decided import decided_rows
    from lmcast.exporter.prove.parity_report import bound
    from lmcast.exporter.prove.references import Chain, drawn, references

    engine = export(
        checkpoint, place / "engine", "cuda", DTYPE, "copy",
        parity=False, tokenizer=False, text_only=True, sms=(sm,),
    )  # fmt: skip
    source, _ = identified(checkpoint)
    found, kind = understand(source, (), False, text_only=True), DTYPES[DTYPE].torch
    vocab, (row, *_) = engine.vocab_size, drawn(engine.vocab_size, PROMPT + STEPS)
    rows = decided_rows((found, found), source, [row, row[::-1]], vocab, kind)
    first, second = rows
    ways = {
        "alone": [Chain([r], [[row[:PROMPT]], *([[t]] for t in row[PROMPT:])])
                  for r, row in enumerate(rows)],
        "together": [Chain([0, 1], [[first[:PROMPT], second[: PROMPT - LESS]], *(
            [[first[PROMPT + i]], [second[PROMPT - LESS + i]]] for i in range(STEPS))])],
    }  # fmt: skip
    exact, bounds = [], []
    for reference in references(found, found, source, rows, ways, kind).values():
        if not reference.tells(DTYPE):
            raise RuntimeError(f"{place.name}: its bound would pass logits that say nothing")
        places = [at for chain in reference.chains for call in chain.places() for at in call]
        exact += [reference.exact[at] for at in places]
        bounds += [bound(reference.error, DTYPE)] * len(places)
    np.savez_compressed(place / EXPECTED, rows=rows, exact=exact, bounds=bounds)


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
    got += list(session.append(rows[:, :PROMPT], [PROMPT, PROMPT - LESS]))
    for step in range(STEPS):
        tokens = [rows[0, PROMPT + step], rows[1, PROMPT - LESS + step]]
        got += list(session.append(np.array(tokens)[:, None]))
    return got


def compared(got: list[np.ndarray], place: Path) -> dict[str, float]:
    """Return the largest error from fp64, and the largest in units of what parity allows."""
    expected = np.load(place / EXPECTED)
    errors = np.abs(np.stack(got).astype(np.float64) - expected["exact"]).max(-1)
    # NaN if any is.
    return {"error": float(errors.max()), "of bound": float((errors / expected["bounds"]).max())}
