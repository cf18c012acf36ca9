"""What it costs that experts of target cuda have their scales in the dtype of the engine.

    python tests/benchmarks/expert_scales.py

Logits of tiny models with random weights, in fp64, by three models with the same codes: scales as
they are, and rounded to bfloat16 or float16. Beside them what the codes cost, and what computing in
bfloat16 does. A difference is that of the logits of a token, root mean square, in their standard
deviation; of all tokens the median is told, as a few are routed to other experts by any change.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from files.recipe_dirs import write_packed  # noqa: E402
from tiny import Case, case, make, prompt  # noqa: E402

from lmcast.exporter.pipeline import identified, take_recipe, understand  # noqa: E402
from lmcast.graphs import fill  # noqa: E402
from lmcast.graphs import load as load_eager  # noqa: E402

NAMES = ("qwen3_moe/plain", "glm4_moe/plain", "deepseek_v3/plain")
FORMATS = ("int4", "int4-128", "int8")
WIDE = {"hidden_size": 256, "moe_intermediate_size": 128, "intermediate_size": 256}
EXPERTS = ("experts.gate", "experts.up", "experts.down")
ROUNDED = {"exact": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOKENS = 256
HEAD = """| Model | Experts | codes | scales in bf16 | scales in fp16 | computing in bf16 |
| --- | --- | --- | --- | --- | --- |"""


def wide(name: str) -> Case:
    found = case(name)
    return dataclasses.replace(found, settings={**found.settings, **WIDE})


@torch.no_grad()
def logits(checkpoint: Path, recipe: Path | None, dtype: torch.dtype, ids: Tensor) -> Tensor:
    if recipe is None:
        return load_eager(checkpoint, dtype)(ids).double()
    source, identities = identified(checkpoint)
    found, source = take_recipe(understand(source, (), False), source, recipe, identities, {})
    fill(found, found.model, source.read, dtype)
    return found.model.eval()(ids).double()


def row(name: str, format: str, checkpoint: Path, folder: Path, ids: Tensor) -> str:
    formats = dict.fromkeys(EXPERTS, format)
    recipes = {
        which: write_packed(checkpoint, folder / f"{format}-{which}", formats, near=near)
        for which, near in ROUNDED.items()
    }
    plain = logits(checkpoint, None, torch.float64, ids)
    exact, short, half = (logits(checkpoint, r, torch.float64, ids) for r in recipes.values())
    narrow = logits(checkpoint, recipes["exact"], torch.bfloat16, ids)
    pairs = ((plain, exact), (exact, short), (exact, half), (exact, narrow))
    cells = (f"{(apart(a, b) / exact.std()).item():.1e}" for a, b in pairs)
    return f"| {name.partition('/')[0]} | {format} | {' | '.join(cells)} |"


def apart(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean(-1).sqrt().median()


def main() -> None:
    print(HEAD)
    with tempfile.TemporaryDirectory() as directory:
        for name in NAMES:
            folder = Path(directory, name.partition("/")[0])
            checkpoint = make(wide(name), folder / "checkpoint")
            for format in FORMATS:
                print(row(name, format, checkpoint, folder, prompt(2, TOKENS)), flush=True)


if __name__ == "__main__":
    main()
