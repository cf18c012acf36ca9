"""What calibration costs beside NVIDIA ModelOpt's, on the same random weights and tokens: a table.

    python tests/benchmarks/calibration.py                          # a quarter of the widths
    python tests/benchmarks/calibration.py --part 1 --tokens 1024   # whole widths: an hour or two

Two models: four layers of the shape of Qwen3-8B, and one of 128 experts of the shape of
Qwen3-30B-A3B. Each run is a process of its own, in one thread, from the checkpoint to what it ends
with: ours are files of packed weights, chosen and measured against the unquantized model;
ModelOpt's is a model in memory whose weights are rounded when they are used.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import children

CHUNK, VOCABULARY = 256, 32768
MB, MODELS = 1e6, ("dense", "experts")
# Name -> format of weights, format of inputs, what is tried.
OURS = {
    "fp8 nearest": ("fp8-channel", "fp8", ["rtn"]),
    "int4 nearest": ("int4", None, ["rtn"]),
    "int4 GPTQ": ("int4", None, ["rtn", "gptq"]),
}
THEIRS = {
    "fp8 nearest": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int4 nearest": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4 AWQ": "INT4_AWQ_CFG",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", type=int, default=4, help="Widths are divided by this.")
    parser.add_argument("--tokens", type=int, default=4096, help="To calibrate on.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args()
    part, tokens, rows = options.part, options.tokens, []
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as folder:
        for model in options.models:
            checkpoint = f"{folder}/{model}"
            children.run("calibration", "write", directory=checkpoint, model=model, part=part)
            for name, (weights, inputs, ladder) in OURS.items():
                given = {"weights": weights, "inputs": inputs, "ladder": ladder, "tokens": tokens}
                given |= {"checkpoint": checkpoint, "output": f"{folder}/{model} {name}"}
                child = children.run("calibration", "ours", **given)
                rows.append(_row(model, "lmcast", name, tokens, child))
            for name, config in THEIRS.items():
                given = {"checkpoint": checkpoint, "config": config, "tokens": tokens}
                child = children.run("calibration", "theirs", **given)
                rows.append(_row(model, "ModelOpt", name, tokens, child))
    columns = ["model", "by", "what", "CPU s", "wall s", "tokens/CPU s", "peak RSS MB"]
    print(children.table(columns, rows))


def _row(model: str, by: str, name: str, tokens: int, child: children.Child) -> list[str]:
    speed = tokens / child.cpu_seconds
    numbers = [child.cpu_seconds, child.wall_seconds, speed, child.peak_rss / MB]
    row = [model, by, name, *(f"{number:.0f}" for number in numbers)]
    print(*row, file=sys.stderr, flush=True)
    return row


def write(directory: str, model: str, part: int) -> None:
    """Write random weights in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    shared: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "head_dim": 128,
        "tie_word_embeddings": False,
    }
    if model == "dense":
        config = Qwen3Config(
            num_hidden_layers=4, hidden_size=4096 // part, intermediate_size=12288 // part,
            num_attention_heads=32 // part, num_key_value_heads=8 // part, **shared,
        )  # fmt: skip
    else:
        config = Qwen3MoeConfig(
            num_hidden_layers=1, hidden_size=2048 // part, moe_intermediate_size=768 // part,
            num_attention_heads=32 // part, num_key_value_heads=4 // part, num_experts=128,
            num_experts_per_tok=8, norm_topk_prob=True, **shared,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)


def sample(count: int, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, CHUNK), generator=generator)


def ours(
    checkpoint: str, output: str, weights: str, inputs: str | None, ladder: list[str], tokens: int
) -> None:
    import torch

    torch.set_num_threads(1)
    from lmcast.calib.presets import Preset
    from lmcast.exporter.calibration import calibrate
    from lmcast.graphs.blocks.quantized import InputFormat

    preset = Preset(weights, InputFormat(inputs), tuple(ladder))
    count = tokens // CHUNK
    calibrate(checkpoint, output, recipe=preset, ids=(sample(count, 0), sample(count // 4, 1)))


def theirs(checkpoint: str, config: str, tokens: int) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def forward(model: torch.nn.Module) -> None:
        for ids in sample(tokens // CHUNK, 0).split(2048 // CHUNK):
            model(ids)

    mtq.quantize(model, getattr(mtq, config), forward)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
