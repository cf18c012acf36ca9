"""Triton's ONNX Runtime backend, as far as states go: what it does with a model's config.pbtxt.

The backend itself is in NVIDIA's container alone. A sequence begins with the `initial_state` of
each state; requests that are run as one batch have their inputs and states concatenated, and the
outputs that are states are kept for the next request of the same sequence.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

DTYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64}
STATE = re.compile(
    r'input_name: "(.*?)" output_name: "(.*?)" data_type: (\w+) dims: \[ (.*?) \]\s*'
    r"use_same_buffer_for_input_output: true\s*"
    r'initial_state \[ \{ name: ".+?" data_type: \3 dims: \[ \4 \] zero_data: true \} \]'
)


@dataclass(frozen=True)
class State:
    """What config.pbtxt says of one; dims without the batch."""

    past: str
    present: str
    dtype: str
    dims: tuple[int, ...]


def read_states(config: Path) -> list[State]:
    """Return the states of a config.pbtxt, each with all that the sequence batcher asks for."""
    text = config.read_text()
    found = [
        State(past, present, dtype, tuple(map(int, dims.split(", "))))
        for past, present, dtype, dims in STATE.findall(text)
    ]
    assert len(found) == text.count("input_name")
    return found


class Sequences:
    """A model of a repository with sequences by number."""

    def __init__(self, model: Path):
        self.states = read_states(model / "config.pbtxt")
        # Found by their place in the order of names, before and after.
        by_name = (
            {s.past: i for i, s in enumerate(self.states)},
            {s.present: i for i, s in enumerate(self.states)},
        )
        assert [by_name[0][n] for n in sorted(by_name[0])] == [
            by_name[1][n] for n in sorted(by_name[1])
        ]
        self.session = ort.InferenceSession(model / "1" / "model.onnx")
        inputs = {given.name for given in self.session.get_inputs()}
        assert inputs == {"input_ids", *by_name[0]}
        self.held: dict[int, dict[str, np.ndarray]] = {}

    def infer(self, requests: dict[int, list[int]]) -> np.ndarray:
        """Run the next request of some sequences as one batch; return logits [requests, 1, V]."""
        for number in requests:
            zeros = {s.past: np.zeros((1, *s.dims), DTYPES[s.dtype]) for s in self.states}
            self.held.setdefault(number, zeros)
        feeds = {
            s.past: np.concatenate([self.held[number][s.past] for number in requests])
            for s in self.states
        }
        outputs = ["logits", *(s.present for s in self.states)]
        ids = np.array(list(requests.values()))
        logits, *presents = self.session.run(outputs, feeds | {"input_ids": ids})
        for state, present in zip(self.states, presents, strict=True):
            for row, number in enumerate(requests):
                kept = present[row : row + 1]
                assert kept.shape == (1, *state.dims)
                self.held[number][state.past] = kept
        found: np.ndarray = logits
        return found
