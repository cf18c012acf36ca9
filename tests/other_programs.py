"""Other programs that run an engine, as loops of numpy over ONNX Runtime: what they pad and carry.

`make test-clients` runs the programs themselves.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from lmcast.exporter import Engine
from lmcast.exporter.backends.onnxruntime import session_options
from lmcast.exporter.clients.adapt import adapt
from lmcast.exporter.clients.contract import Contract
from lmcast.exporter.clients.write import WRITTEN, read

Rows = Sequence[Sequence[int]]
PAD = 1


def opened(engine: Engine, contract: Contract) -> ort.InferenceSession:
    """Return the graph of an engine under a contract, as the program opens it."""
    about = engine.manifest.about
    graph = adapt(read(engine.directory, about), about.graph.states, contract)
    options = session_options(engine.manifest, about.graph)
    if contract.name == "hub":  # they ask for nothing
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(graph).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def greedy(
    session: ort.InferenceSession, contract: Contract, count: int, rows: Rows
) -> list[list[int]]:
    """Return the next tokens of rows, which are padded as the program does."""
    left, longest = contract.name == "hub", max(map(len, rows))
    sizes = {"batch_size": len(rows), "max_sequence_length": longest + count}
    ids = np.full((len(rows), longest), PAD)
    mask = np.zeros_like(ids)
    for row, kept, given in zip(ids, mask, rows, strict=True):
        part = slice(longest - len(given), None) if left else slice(len(given))
        row[part], kept[part] = given, 1
    pasts: Mapping[str, np.ndarray] = {
        value.name: np.zeros([sizes.get(n, 0) if isinstance(n, str) else n for n in value.shape],
                             np.float32)
        for value in session.get_inputs() if value.name.startswith("past")
    }  # fmt: skip
    names, found = [value.name for value in session.get_outputs()], []
    for _ in range(count):
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        given = {**given, "position_ids": positions, **pasts}
        after = dict(zip(names, session.run(None, given), strict=True))
        assert left or after["logits"].shape[1] == 1
        ids = after["logits"][:, -1:].argmax(-1)
        found.append(ids[:, 0])
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=1)
        pasts = {name: after[name.replace("past_key_values", "present")] for name in pasts}
    return np.stack(found, 1).tolist()


def differs(engine: Engine, rows: Rows, count: int) -> list[str]:
    """Return where a program of WRITTEN gives other tokens than the engine, one row or all."""
    wanted = [list(result.ids) for result in engine.generate(rows, max_new_tokens=count)]
    wrong = []
    for contract in WRITTEN:
        run = partial(greedy, opened(engine, contract), contract, count)
        for what, got in (("one row", [run([row])[0] for row in rows]), ("rows", run(rows))):
            if [g[: len(w)] for g, w in zip(got, wanted, strict=True)] != wanted:
                wrong.append(f"{contract.name}, {what}: {got} instead of {wanted}")
    return wrong
