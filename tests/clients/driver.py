"""Continues prompts with engines in one program; run by the Python of its environment.

    driver.py PROGRAM REQUEST.json ANSWER.json

It knows nothing of lmcast but how `lmcast parity --client` runs that program. The request has
`new`, the number of tokens to make, and `engines`: name -> `directory`, `prompts` (lists of token
ids). The answer has for each name what came of the prompts one by one (`single`), and of all in one
call (`batch`): lists of token ids, or the error as a text.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "exporter/prove"))  # behind all others
import libraries
from libraries import Batches, Opened, Tokens


def onnxruntime(engine: Path) -> Opened:
    """ONNX Runtime by itself: the loop of people who have read the graph's inputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(f"{engine}/model.onnx")
    names = [output.name for output in session.get_outputs()]

    def run(prompts: list[list[int]], new: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        pads = [[0] * (longest - len(prompt)) for prompt in prompts]
        ids = np.array([p + prompt for p, prompt in zip(pads, prompts, strict=True)])
        mask = np.array([p + [1] * len(prompt) for p, prompt in zip(pads, prompts, strict=True)])
        known = {"batch_size": len(prompts)}
        states = {
            state.name: np.zeros(
                [n if isinstance(n, int) else known.get(n, 0) for n in state.shape],
                np.float32,
            )
            for state in session.get_inputs()
            if state.name.startswith("past")
        }
        made = []
        for _ in range(new):
            positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
            feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            logits, *present = session.run(names, feeds | states)
            states = dict(zip(states, present, strict=True))
            ids = logits[:, -1:].argmax(-1)
            mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
            made.append(ids[:, 0])
        found: list[list[int]] = np.stack(made, 1).tolist()
        return found

    def greedy(batches: Batches, count: int) -> Tokens:
        return [run([list(row) for row in rows], count) for rows in batches]

    return Opened("onnxruntime", onnxruntime.__version__, greedy)


PROGRAMS: dict[str, Callable[[Path], Opened]] = {
    "genai": libraries.genai,
    "optimum": libraries.optimum,
    "js": libraries.transformers_js,
    "onnxruntime": onnxruntime,
}


def answer(load: Callable[[Path], Opened], engine: dict[str, Any], new: int) -> dict[str, Any]:
    prompts = engine["prompts"]

    def one_by_one() -> list[list[int]]:
        return [row for (row,) in opened.greedy([[prompt] for prompt in prompts], new)]

    def together() -> list[list[int]]:
        (rows,) = opened.greedy([prompts], new)
        return rows

    try:
        opened = load(Path(engine["directory"]))
    except Exception as error:  # noqa: BLE001 - of another program, whatever it raises
        return dict.fromkeys(("single", "batch"), said(error))
    return {"single": outcome(one_by_one), "batch": outcome(together)}


def outcome(call: Callable[[], list[list[int]]]) -> list[list[int]] | str:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - of another program, whatever it raises
        return said(error)


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:500]}"


if __name__ == "__main__":
    program, request, to = sys.argv[1:]
    given = json.loads(Path(request).read_text())
    found = {
        name: answer(PROGRAMS[program], engine, given["new"])
        for name, engine in given["engines"].items()
    }
    Path(to).write_text(json.dumps(found))
