"""What calibration costs beside ModelOpt's and llm-compressor's, on the same random weights and
tokens: a table.

    python tests/benchmarks/calibration.py                          # a quarter of the widths
    python tests/benchmarks/calibration.py --part 1 --tokens 1024   # whole widths: an hour or two

Two models: four layers of the shape of Qwen3-8B, and one of 128 experts of the shape of
Qwen3-30B-A3B. Each run is a process of its own, in one thread, from the checkpoint to what it ends
with: ours are files of packed weights, chosen and measured against the unquantized model; theirs is
a model in memory, whose weights ModelOpt rounds when they are used. llm-compressor runs where the
tests' environment of it is (make .venv/.llm-compressor).
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import children

CHUNK, VOCABULARY = 256, 32768
MB, MODELS = 1e6, ("dense", "experts")
PEER = Path(sys.prefix) / "llm-compressor/bin/python"
# Who, and what -> the function below that does it, with what.
RUNS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("lmcast", "fp8 nearest"): ("ours", {"preset": ("fp8-channel", "fp8", ["rtn"])}),
    ("lmcast", "int4 nearest"): ("ours", {"preset": ("int4", None, ["rtn"])}),
    ("lmcast", "int4 GPTQ"): ("ours", {"preset": ("int4", None, ["rtn", "gptq"])}),
    ("ModelOpt", "fp8 nearest"): ("theirs", {"config": "FP8_PER_CHANNEL_PER_TOKEN_CFG"}),
    ("ModelOpt", "int4 nearest"): ("theirs", {"config": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"}),
    ("ModelOpt", "int4 AWQ"): ("theirs", {"config": "INT4_AWQ_CFG"}),
    ("llm-compressor", "int4 GPTQ"): ("gptq", {"python": str(PEER)}),
}
WHAT = tuple(dict.fromkeys(what for _, what in RUNS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--part", type=int, default=4, choices=(1, 2, 4, 8), help="Widths are divided by this."
    )
    parser.add_argument("--tokens", type=int, default=4096, help="To calibrate on.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    options = parser.parse_args()
    part, tokens, rows = options.part, options.tokens, []
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as folder:
        for model in options.models:
            checkpoint = f"{folder}/{model}"
            children.run("calibration", "write", directory=checkpoint, model=model, part=part)
            for (by, what), (function, given) in RUNS.items():
                if what not in options.what or not Path(given.get("python", folder)).exists():
                    continue
                given = {"checkpoint": checkpoint, "tokens": tokens, **given}
                child = children.run("calibration", function, **given)
                rows.append(_row(model, by, what, tokens, child))
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
            num_attention_heads=32 // part, num_key_value_heads=max(1, 4 // part), num_experts=128,
            num_experts_per_tok=8, norm_topk_prob=True, **shared,
        )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)


def sample(count: int, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, CHUNK), generator=generator)


def ours(checkpoint: str, tokens: int, preset: tuple[str, str | None, list[str]]) -> None:
    """preset: the format of weights, that of inputs, and what is tried."""
    import torch

    torch.set_num_threads(1)
    from lmcast.calib.presets import Preset
    from lmcast.exporter.calibrate.calibrate import calibrate
    from lmcast.graphs.blocks.quantized import InputFormat

    weights, inputs, ladder = preset
    recipe, count = Preset(weights, InputFormat(inputs), tuple(ladder)), tokens // CHUNK
    with tempfile.TemporaryDirectory(dir=Path(checkpoint).parent) as folder:
        ids = sample(count, 0), sample(max(1, count // 4), 1)
        calibrate(checkpoint, f"{folder}/recipe", recipe=recipe, ids=ids)


def theirs(checkpoint: str, tokens: int, config: str) -> None:
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


def gptq(checkpoint: str, tokens: int) -> None:
    """GPTQ of llm-compressor, to the format that ours is: groups of 32, symmetric."""
    # Its transformers would take kernels.py of this folder for the package of that name.
    sys.path[:] = [path for path in sys.path if Path(path) != Path(__file__).parent]
    import torch
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    scheme = preset_name_to_scheme("W4A16", ["Linear"])
    scheme.weights.group_size = 32
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        for ids in sample(tokens // CHUNK, 0)
    ]
    oneshot(
        model=AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32),
        recipe=GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head", "re:.*mlp.gate$"]),
        dataset=torch.utils.data.DataLoader(rows),
        # One is asked for where there is data, and not used: the data are ids.
        processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, ""))),
        max_seq_length=CHUNK,
        num_calibration_samples=len(rows),
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
