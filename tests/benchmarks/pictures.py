"""A picture on the CPU, beside transformers: time of the tower, of a prompt with it, and memory.

    python tests/benchmarks/pictures.py [--towers mistral3 qwen3_5] [--layers 27] [--rounds 3]

Random weights in fp32: the tower of a published model in front of a text of few layers. Every call
is in a process of its own, engines and transformers by turns; its peak is the kernel's high-water
mark, private memory is without the pages of mapped files. transformers runs eagerly, with its
default attention (`sdpa`) and with its plain one (`eager`).
"""

import argparse
import json
import os
import random
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import children

MB = 1e6
TEXT: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
}
QWEN = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 5,
        "vision_end_token_id": 6}  # fmt: skip
# model_type -> class of transformers, settings of its config, files of its processor, tokens
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "mistral3": (
        "Mistral3ForConditionalGeneration",
        {
            "text_config": {"model_type": "mistral", **TEXT, "sliding_window": None},
            "vision_config": {
                "model_type": "pixtral", "hidden_size": 1024, "intermediate_size": 4096,
                "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 1540,
                "patch_size": 14, "hidden_act": "silu",
            },
            "image_token_index": 3, "spatial_merge_size": 2, "vision_feature_layer": -1,
        },
        {
            "image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 1540},
            "patch_size": {"height": 14, "width": 14},
        },
        {"[IMG]": "3", "[IMG_BREAK]": "4", "[IMG_END]": "5"},
    ),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        {
            "text_config": {
                "model_type": "qwen3_5_text", **TEXT, "layer_types": ["full_attention"] * 2,
            },
            "vision_config": {
                "model_type": "qwen3_5", "depth": 27, "hidden_size": 1152,
                "intermediate_size": 4304, "num_heads": 16, "patch_size": 16,
                "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 1024,
                "num_position_embeddings": 2304,
            },
            **QWEN,
        },
        {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16,
            "merge_size": 2, "temporal_patch_size": 2, "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
        {"<|image_pad|>": "3", "<|video_pad|>": "4", "<|vision_start|>": "5",
         "<|vision_end|>": "6"},
    ),
}  # fmt: skip
SIZES = {"512x512": (512, 512), "1536x1024": (1024, 1536)}  # height, width
WORDS = 32  # tokens behind a picture


def config_of(name: str, layers: int | None) -> Any:
    """Return a config of transformers; layers: of the tower, None: all."""
    import transformers

    model, settings, _, _ = MODELS[name]
    vision = settings["vision_config"]
    if layers is not None:
        key = "depth" if "depth" in vision else "num_hidden_layers"
        vision = {**vision, key: layers}
    config = {**settings, "vision_config": vision, "tie_word_embeddings": False}
    return getattr(transformers, model).config_class(**config)


def prepare(work: str, name: str, layers: int | None) -> None:
    """Write a checkpoint with random weights, and an engine of it."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    from lmcast.exporter import export

    torch.manual_seed(0)
    model, _, processor, marks = MODELS[name]
    folder = Path(work, name)
    made = getattr(transformers, model)._from_config(config_of(name, layers), dtype=torch.float32)
    made.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    own = {"patch_size": 14, "spatial_merge_size": 2} if name == "mistral3" else {}
    (folder / "processor_config.json").write_text(json.dumps(own))
    vocabulary = {f"t{i}": i for i in range(TEXT["vocab_size"])}
    for mark, token in marks.items():
        del vocabulary[f"t{token}"]
        vocabulary[mark] = int(token)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.add_special_tokens(list(marks))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    export(folder, Path(work, f"{name}-engine"), "cpu", "float32", parity=False)


def picture(height: int, width: int) -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ids_of(text: str, marks: dict[str, str]) -> list[int]:
    """Return the tokens that a text of marks stands for, and some behind it."""
    found = []
    while text:
        mark = next(mark for mark in marks if text.startswith(mark))
        found.append(int(marks[mark]))
        text = text.removeprefix(mark)
    return [*found, *range(10, 10 + WORDS)]


def measured(load: Any, calls: dict[str, Any], runs: int) -> dict[str, Any]:
    """Return seconds and bytes of a process: medians of warm calls, and peaks of all.

    runs: warm ones of each call; 0: the first counts, which reads the weights.
    """
    from lmcast.exporter.bench import Peaks

    peaks, found = Peaks(), dict[str, Any]()
    with peaks.watching():
        load()
        peaks.look()
        before = peaks.private
        for name, call in calls.items():
            walls, cpus = [], []
            for _ in range(1 + runs):
                wall, cpu = time.perf_counter(), time.process_time()
                call()
                walls.append(time.perf_counter() - wall)
                cpus.append(time.process_time() - cpu)
            found |= {name: median(walls[-max(runs, 1) :])}
            found |= {f"{name} CPU": median(cpus[-max(runs, 1) :])}
    return {**found, "private": peaks.private, "more": peaks.private - before, "rss": peaks.rss}


def lmcast(
    work: str, name: str, height: int, width: int, threads: int, runs: int
) -> dict[str, Any]:
    """An engine: what the tower takes of a prepared picture, and a whole prompt with it."""
    from lmcast.exporter.runtime.engine import Engine

    held: dict[str, Any] = {}

    def load() -> None:
        engine = Engine(Path(work, f"{name}-engine"), threads)
        seen = engine.tower.picture(picture(height, width))
        held["engine"], held["encoded"] = engine, seen.encoded
        held["ids"] = ids_of("".join(each.text for each in seen.encoded), MODELS[name][3])
        assert engine.runner

    def encode() -> Any:
        from lmcast.exporter.runtime.images import Picture

        seen = Picture.of(held["encoded"])
        held["engine"].tower.see([seen])
        held["features"] = seen.features
        return seen

    def prompt() -> None:
        engine = held["engine"]
        ids, images = engine.tower.place(held["ids"], [encode()])
        held["logits"] = engine.session(1).append([ids], images=[images])

    found = measured(load, {"encode": encode, "prompt": prompt}, runs)
    return {**found, **_numbers(held)}


def _numbers(held: dict[str, Any]) -> dict[str, Any]:
    """Return a few of the numbers that came out, to be compared."""
    features, logits = held["features"], held["logits"]
    return {"features": features[:4, :8].tolist(), "logits": logits[0, :8].tolist(),
            "tokens": len(features)}  # fmt: skip


def transformers(
    work: str, name: str, height: int, width: int, threads: int, runs: int, attention: str
) -> dict[str, Any]:
    """Eager PyTorch on the same picture, prepared as the engine does it."""
    import torch
    import transformers as hf

    from lmcast.exporter.runtime.engine import Engine

    torch.set_num_threads(threads)
    held: dict[str, Any] = {}
    seen = Engine(Path(work, f"{name}-engine"), threads).tower.picture(picture(height, width))
    (encoded,) = seen.encoded
    ids = torch.tensor([ids_of(encoded.text, MODELS[name][3])])
    given = pixels_of(name, torch.from_numpy(encoded.inputs["patches"]), encoded.grid)

    def load() -> None:
        cls = getattr(hf, MODELS[name][0])
        folder = Path(work, name)
        held["model"] = cls.from_pretrained(folder, attn_implementation=attention).eval()

    @torch.inference_mode()
    def encode() -> None:
        made = held["model"].model.get_image_features(**given, return_dict=True).pooler_output
        held["features"] = torch.cat(list(made)).numpy()

    @torch.inference_mode()
    def prompt() -> None:
        types = {"mm_token_type_ids": (ids == 3).int()} if name == "qwen3_5" else {}
        out = held["model"](input_ids=ids, **given, **types, logits_to_keep=1)
        held["logits"] = out.logits[:, -1].numpy()

    found = measured(load, {"encode": encode, "prompt": prompt}, runs)
    return {**found, **_numbers(held)}


def pixels_of(name: str, patches: Any, grid: tuple[int, int, int]) -> dict[str, Any]:
    """Return what transformers takes of patches 1,M,K,E of a grid."""
    import torch

    _, rows, columns = grid
    if name == "qwen3_5":
        return {"pixel_values": patches.flatten(0, 2), "image_grid_thw": torch.tensor([grid])}
    side = int((patches.shape[-1] // 3) ** 0.5)
    cut = patches.reshape(rows // 2, columns // 2, 2, 2, 3, side, side).permute(4, 0, 2, 5, 1, 3, 6)
    whole = cut.reshape(1, 3, rows * side, columns * side)
    return {"pixel_values": whole, "image_sizes": torch.tensor([whole.shape[-2:]])}


# What is in a table, and its unit: private memory, and of that what calls take when all is loaded.
MEASURED = {"encode": 1.0, "encode CPU": 1.0, "prompt": 1.0, "prompt CPU": 1.0, "rss": MB,
            "private": MB, "more": MB}  # fmt: skip
WHO: dict[str, tuple[str, dict[str, Any]]] = {
    "lmcast": ("lmcast", {}),
    "transformers (sdpa)": ("transformers", {"attention": "sdpa"}),
    "transformers (eager)": ("transformers", {"attention": "eager"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--towers", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--layers", type=int, help="of a tower; all of them by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=3, help="warm calls of a process")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--who", nargs="+", choices=WHO, default=list(WHO))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lmcast-benchmark-") as work:
        for name in options.towers:
            children.run("pictures", "prepare", work=work, name=name, layers=options.layers)
            for size in options.sizes:
                compare(options, work, name, *SIZES[size])


def compare(options: argparse.Namespace, work: str, name: str, height: int, width: int) -> None:
    """Print a table of one picture."""
    given = {"work": work, "name": name, "height": height, "width": width}
    found: dict[str, list[dict[str, Any]]] = {who: [] for who in options.who}
    for _ in range(options.rounds):
        for who in random.sample(options.who, len(options.who)):
            function, more = WHO[who]
            more = {**more, "threads": options.threads, "runs": options.runs}
            child = children.run("pictures", function, **given, **more)
            found[who].append(child.result)
    first, rows = found[options.who[0]], []
    for who, results in found.items():
        cells = []
        for what, scale in MEASURED.items():
            share = median(a[what] / b[what] for a, b in zip(first, results, strict=True))
            cells += [f"{median(r[what] for r in results) / scale:.2f}", f"{share:.2f}"]
        away = max(
            abs(a - b)
            for one, other in zip(results[0]["features"], first[0]["features"], strict=True)
            for a, b in zip(one, other, strict=True)
        )
        rows.append([who, *cells, f"{away:.0e}"])
    columns = ["", *(f"{what}{end}" for what in MEASURED for end in ("", ", of it")), "differ"]
    tokens = first[0]["tokens"]
    print(f"\n{name}, {width} x {height} pixels, {tokens} tokens, {options.threads} threads")
    print(children.table(columns, rows), flush=True)


if __name__ == "__main__":
    main()
