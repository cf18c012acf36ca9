"""Engines in onnxruntime-genai."""

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from answers import Continue, Rows, answer


def load(directory: str) -> Continue:
    model = og.Model(directory)
    pad = json.loads(Path(directory, "genai_config.json").read_text())["model"]["pad_token_id"]

    def run(prompts: Rows, new: int) -> Rows:
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), pad, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt  # it finds lengths by padding on the right
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(
            batch_size=len(prompts), max_length=longest + new, do_sample=False
        )
        generator = og.Generator(model, parameters)
        generator.append_tokens(ids if len(prompts) > 1 else ids[0])
        made: Rows = [[] for _ in prompts]
        while not generator.is_done():
            generator.generate_next_token()
            for row, token in zip(made, generator.get_next_tokens(), strict=True):
                row.append(int(token))
        return made

    return run


answer(load)
