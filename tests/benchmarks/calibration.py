"""What calibration costs beside ModelOpt's and llm-compressor's, on the same random weights and
tokens: a table, with our CPU time and memory as multiples of theirs in the same run.

    python tests/benchmarks/calibration.py                                     # all: an hour or two
    python tests/benchmarks/calibration.py --models smollm2 --what "int4 preset"
    python tests/benchmarks/calibration.py --models dense experts --part 4     # of the widths

Models have random weights in the shapes of SHAPES. Each run is a process of its own, in one thread,
from the checkpoint to what it ends with: ours are files of packed weights, chosen and measured
against the unquantized model; theirs is a model in memory, whose weights ModelOpt rounds when they
are used. llm-compressor runs where the tests' environment of it is (make .venv/.llm-compressor).
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import children

CHUNK, MB = 256, 1e6
# Classes of transformers, and what their config has besides: of the last two --part divides WIDTHS.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2": (  # SmolLM2-135M
        "Llama",
        {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
         "tie_word_embeddings": True},
    ),
    "gemma3": (  # Gemma 3 270M
        "Gemma3Text",
        {"num_hidden_layers": 18, "hidden_size": 640, "intermediate_size": 2048, "head_dim": 256,
         "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262144,
         "query_pre_attn_scalar": 256, "sliding_window": 512, "tie_word_embeddings": True},
    ),
    "dense": (  # a layer of Llama 3 8B
        "Llama",
        {"num_hidden_layers": 1, "hidden_size": 4096, "intermediate_size": 14336,
         "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32768,
         "tie_word_embeddings": False},
    ),
    "experts": (  # a layer of Qwen3-30B-A3B
        "Qwen3Moe",
        {"num_hidden_layers": 1, "hidden_size": 2048, "moe_intermediate_size": 768,
         "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128,
         "num_experts_per_tok": 8, "norm_topk_prob": True, "vocab_size": 32768,
         "tie_word_embeddings": False},
    ),
}  # fmt: skip
WIDTHS = ("hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
          "num_key_value_heads")  # fmt: skip
PEER = Path(sys.prefix) / "llm-compressor/bin/python"
# Who, and what -> the function below that does it, with what.
RUNS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("lmcast", "fp8 nearest"): ("ours", {"preset": ("fp8-channel", "fp8", ["rtn"])}),
    ("lmcast", "int4 nearest"): ("ours", {"preset": ("int4", None, ["rtn"])}),
    ("lmcast", "int4 GPTQ"): ("ours", {"preset": ("int4", None, ["rtn", "gptq"])}),
    ("lmcast", "int4 preset"): ("ours", {"preset": "int4"}),
    ("ModelOpt", "fp8 nearest"): ("theirs", {"config": "FP8_PER_CHANNEL_PER_TOKEN_CFG"}),
    ("ModelOpt", "int4 nearest"): ("theirs", {"config": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG"}),
    ("ModelOpt", "int4 AWQ"): ("theirs", {"config": "INT4_AWQ_CFG"}),
    ("llm-compressor", "int4 GPTQ"): ("gptq", {"python": str(PEER)}),
}
WHAT = tuple(dict.fromkeys(what for _, what in RUNS))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--part", type=int, default=1, choices=(1, 2, 4, 8), help="Divides the widest two's widths."
    )
    parser.add_argument("--tokens", type=int, default=2048, help="To calibrate on.")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    options = parser.parse_args()
    tokens, rows = options.tokens, []
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as folder:
        for model in options.models:
            checkpoint = f"{folder}/{model}"
            part = options.part if model in ("dense", "experts") else 1
            children.run("calibration", "write", directory=checkpoint, model=model, part=part)
            found: dict[tuple[str, str], children.Child] = {}
            for (by, what), (function, given) in RUNS.items():
                if what not in options.what or not Path(given.get("python", folder)).exists():
                    continue
                given = {"checkpoint": checkpoint, "model": model, "tokens": tokens, **given}
                found[by, what] = child = children.run("calibration", function, **given)
                print(model, by, what, *_numbers(child, tokens), file=sys.stderr, flush=True)
            rows += [
                [model, by, what, *_numbers(child, tokens), *_beside(found, by, what)]
                for (by, what), child in found.items()
            ]
            shutil.rmtree(checkpoint)
    columns = ["model", "by", "what", "CPU s", "wall s", "tokens/CPU s", "peak RSS MB",
               "CPU of theirs", "MB of theirs"]  # fmt: skip
    print(children.table(columns, rows))


def _numbers(child: children.Child, tokens: int) -> list[str]:
    speed = tokens / child.cpu_seconds
    numbers = [child.cpu_seconds, child.wall_seconds, speed, child.peak_rss / MB]
    return [f"{number:.3g}" if number < 10 else f"{number:.0f}" for number in numbers]


def _beside(found: dict[tuple[str, str], children.Child], by: str, what: str) -> list[str]:
    """Return our CPU time and memory as multiples of a peer's that did the same."""
    ours = found.get(("lmcast", what))
    if by == "lmcast" or ours is None:
        return ["", ""]
    theirs = found[by, what]
    ratios = ours.cpu_seconds / theirs.cpu_seconds, ours.peak_rss / theirs.peak_rss
    return [f"{ratio:.2f}" for ratio in ratios]


def write(directory: str, model: str, part: int) -> None:
    """Write random weights in bfloat16."""
    import torch
    import transformers

    kind, shape = SHAPES[model]
    shape = shape | {name: max(1, shape[name] // part) for name in WIDTHS if name in shape}
    config = getattr(transformers, f"{kind}Config")(**shape)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    made.save_pretrained(directory)


def sample(model: str, count: int, seed: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SHAPES[model][1]["vocab_size"], (count, CHUNK), generator=generator)


def ours(checkpoint: str, model: str, tokens: int, preset: str | tuple[Any, ...]) -> None:
    """preset: one of lmcast's, or the format of weights, that of inputs, and what is tried."""
    import torch

    torch.set_num_threads(1)
    from lmcast.calib.presets import Preset
    from lmcast.exporter.calibrate.calibrate import calibrate
    from lmcast.graphs.blocks.quantized import InputFormat

    recipe: str | Preset
    if isinstance(preset, str):
        recipe = preset
    else:
        weights, inputs, ladder = preset
        recipe = Preset(weights, InputFormat(inputs), tuple(ladder))
    count = tokens // CHUNK
    with tempfile.TemporaryDirectory(dir=Path(checkpoint).parent) as folder:
        ids = sample(model, count, 0), sample(model, max(1, count // 4), 1)
        calibrate(checkpoint, f"{folder}/recipe", recipe=recipe, ids=ids)


def theirs(checkpoint: str, model: str, tokens: int, config: str) -> None:
    import modelopt.torch.quantization as mtq
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    loaded = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @torch.no_grad()
    def forward(loaded: torch.nn.Module) -> None:
        for ids in sample(model, tokens // CHUNK, 0).split(2048 // CHUNK):
            loaded(ids, logits_to_keep=1)

    mtq.quantize(loaded, getattr(mtq, config), forward)


def gptq(checkpoint: str, model: str, tokens: int) -> None:
    """GPTQ of llm-compressor, to the format that ours is: groups of 32, symmetric."""
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
        for ids in sample(model, tokens // CHUNK, 0)
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
