"""Quantize checkpoints with llm-compressor, in an environment of its own.

    llm_compressor.py FOLDER/NAME...

The checkpoint FOLDER/plain becomes each of them; its name is a scheme of compressed-tensors, or one
of MODIFIERS.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from compressed_tensors.quantization import preset_name_to_scheme
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform import SpinQuantModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NOT_ROUTERS = ["lm_head", "re:.*mlp.gate$"]
to_nearest = partial(QuantizationModifier, targets="Linear", ignore=NOT_ROUTERS)
spinquant = partial(SpinQuantModifier, transform_type="hadamard")
CACHE = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}


def two_schemes():
    groups = {
        "attention": preset_name_to_scheme("FP8_DYNAMIC", ["re:.*self_attn.*"]),
        "mlp": preset_name_to_scheme("NVFP4", ["re:.*mlp.*"]),
    }
    return QuantizationModifier(config_groups=groups, ignore=["lm_head"])


MODIFIERS = {
    "gptq": lambda: GPTQModifier(
        targets="Linear", ignore=NOT_ROUTERS, scheme="W4A16", actorder="static"
    ),
    "smoothquant": lambda: [SmoothQuantModifier(), to_nearest(scheme="W8A8")],
    # Rotations that end up in the weights, and one that inputs need, too.
    "spinquant": lambda: [spinquant(rotations=["R1", "R2"]), to_nearest(scheme="W4A16")],
    "spinquant-online": lambda: [spinquant(rotations=["R1", "R4"]), to_nearest(scheme="W4A16")],
    "cache": lambda: to_nearest(scheme="FP8", kv_cache_scheme=CACHE),
    "two": two_schemes,
    "all": lambda: QuantizationModifier(targets=["Linear", "Embedding"], scheme="W8A16"),
}


def main(*directories: str) -> None:
    ids = torch.arange(64)
    data = torch.utils.data.DataLoader([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}])
    # One is asked for where there is data, and not used: the data are ids.
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({}, "")))
    for made in map(Path, directories):
        model = AutoModelForCausalLM.from_pretrained(made.with_name("plain"), dtype=torch.bfloat16)
        make = MODIFIERS.get(made.name, partial(to_nearest, scheme=made.name))
        oneshot(
            model=model, recipe=make(), dataset=data, processor=words, max_seq_length=64,
            num_calibration_samples=1, output_dir=str(made),
        )  # fmt: skip


main(*sys.argv[1:])
