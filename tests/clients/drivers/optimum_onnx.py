"""Engines in optimum's ORTModelForCausalLM, by Hugging Face's generate()."""

import torch
from answers import Continue, Rows, answer
from optimum.onnxruntime import ORTModelForCausalLM


def load(directory: str) -> Continue:
    model = ORTModelForCausalLM.from_pretrained(directory, local_files_only=True)

    def run(prompts: Rows, new: int) -> Rows:
        longest = max(map(len, prompts))
        ids = torch.full((len(prompts), longest), model.generation_config.pad_token_id or 0)
        mask = torch.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :] = torch.tensor(prompt)
            mask[i, longest - len(prompt) :] = 1
        made = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=new, do_sample=False
        )
        return made[:, longest:].tolist()

    return run


answer(load)
