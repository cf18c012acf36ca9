"""Engines in ONNX Runtime by itself: the loop of people who have read the graph's inputs."""

import numpy as np
import onnxruntime
from answers import Continue, Rows, answer


def load(directory: str) -> Continue:
    session = onnxruntime.InferenceSession(f"{directory}/model.onnx")
    names = [output.name for output in session.get_outputs()]

    def run(prompts: Rows, new: int) -> Rows:
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
        return np.stack(made, 1).tolist()

    return run


answer(load)
