"""An engine as other programs run it: its graph under their contract, with what they pad and carry;
and, where one is installed, the program itself, by the tokens that it picks.

Letters: B rows, T tokens of a call, R rows of logits, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lmcast.exporter.backends.onnxruntime import NAMED, REFUSALS, session_options, value_of
from lmcast.exporter.backends.ort import ort
from lmcast.exporter.clients import genai, hub
from lmcast.exporter.clients.adapt import adapt
from lmcast.exporter.clients.contract import ROWS, Contract
from lmcast.exporter.clients.write import read
from lmcast.exporter.dtypes import DTYPES
from lmcast.exporter.engine.manifest import EngineError
from lmcast.exporter.prove import libraries
from lmcast.exporter.prove.rounding import exact_contract, without_rounding
from lmcast.exporter.runtime.engine import Engine


@dataclass(frozen=True)
class Client:
    """A program that opens engines.

    left: whether it pads rows on the left. every: whether it is given logits of every token, else
    of the last of each row. asks: whether it asks ONNX Runtime for what our own sessions do.
    library: opens a directory, as libraries.py says.
    """

    contract: Contract
    left: bool
    every: bool
    asks: bool
    library: Callable[[Path], libraries.Opened]


CLIENTS: Mapping[str, Client] = {
    "genai": Client(genai.contract, False, False, True, libraries.genai),
    "hub": Client(hub.contract, True, True, False, libraries.optimum),
    "js": Client(hub.contract, True, True, False, libraries.transformers_js),
}


class Through:
    """The graph of an engine under a program's contract, loaded as that loads it.

    room: tokens of the longest row. exact: without rounding to low precision. Raises EngineError
    where the engine has none for the program, or it does not run here.
    """

    def __init__(self, engine: Engine, name: str, room: int, exact: bool = False):
        about, client = engine.manifest.about, CLIENTS[name]
        without = f"it was exported without what that opens: `lmcast pack --for {name}` writes it"
        if why := about.clients.get(client.contract.name, without):
            raise EngineError(f"{engine.directory}: is not opened by {name}: {why}")
        if engine.target.machine_code is not None:
            raise EngineError(
                f"{engine.directory}: --client runs graphs on a CPU, and one of target"
                f" {engine.target.name} runs on GPUs alone"
            )
        self.client, self.room = client, room
        self.path = engine.directory / client.contract.graph
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors come as exceptions
        given: str | bytes = str(self.path)
        if client.asks or exact:
            options = session_options(engine.manifest, about.graph)
        if exact:
            options.add_session_config_entry("session.disable_prepacking", "1")
            given = _exact(engine, client.contract)
        if engine.threads is not None:
            options.intra_op_num_threads = engine.threads
        try:
            self.loaded = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except REFUSALS as error:
            raise self.refusal(error) from None

    def session(self, batch: int) -> "Rows":
        """Return `batch` empty sequences."""
        return Rows(self, batch)

    def refusal(self, error: BaseException) -> EngineError:
        """Return the error for what ONNX Runtime refuses."""
        told = " ".join(str(error).split())
        return EngineError(f"{self.path}: ONNX Runtime {ort.__version__} refuses it: {told}")


def _exact(engine: Engine, contract: Contract) -> bytes:
    graph = read(engine.directory, engine.manifest.about)
    without_rounding(graph)
    adapt(graph, exact_contract(engine.manifest.about).states, contract)
    model: bytes = ir.to_proto(graph).SerializeToString()
    return model


class Rows:
    """Sequences that grow, as a program has them: it pads, keeps a mask, and carries states."""

    def __init__(self, through: Through, batch: int):
        self.through = through
        self.mask = np.zeros((batch, 0), np.int64)
        sizes = {ROWS: batch, genai.ROOM: through.room}
        self.carried = {
            value.name: value_of(np.zeros(
                [sizes.get(n, 0) if isinstance(n, str) else n for n in value.shape],
                DTYPES[NAMED[value.type]].numpy,
            ))
            for value in through.loaded.get_inputs() if value.name.startswith("past")
        }  # fmt: skip

    def append(self, ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """ids B,T, counts B valid ones -> logits B,V at the last of each row."""
        logits, places = self._call(ids, counts)
        last: np.ndarray = logits[np.arange(len(ids)), places[np.arange(len(ids)), counts - 1]]
        return last

    def run(self, ids: np.ndarray, counts: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """ids B,T, counts B, rows B,R positions in T -> logits B,R,V."""
        logits, places = self._call(ids, counts)
        at = np.take_along_axis(places, rows, 1)[..., None]
        asked: np.ndarray = np.take_along_axis(logits, at, 1)
        return asked

    def _call(self, ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return logits, and where in them those of each token are: B,T."""
        client, tokens = self.through.client, ids.shape[1]
        steps = np.arange(tokens)
        first = (tokens - counts if client.left else 0 * counts)[:, None]  # B,1
        places = np.minimum(first + steps, tokens - 1)  # B,T
        own = (steps >= first) & (steps < first + counts[:, None])
        moved = np.zeros_like(ids)
        moved[own] = ids[steps < counts[:, None]]
        self.mask = np.concatenate([self.mask, own.astype(np.int64)], 1)
        positions = np.maximum(self.mask.cumsum(1) - 1, 0)[:, -tokens:]
        given = {"input_ids": moved, "attention_mask": self.mask, "position_ids": positions}
        taken = {value.name for value in self.through.loaded.get_inputs()}
        feed = {n: value_of(np.ascontiguousarray(a)) for n, a in given.items() if n in taken}
        names = [value.name for value in self.through.loaded.get_outputs()]
        try:
            outputs = self.through.loaded.run_with_ort_values(names, feed | self.carried)
        except REFUSALS as error:
            raise self.through.refusal(error) from None
        after = dict(zip(names, outputs, strict=True))
        self.carried = {n: after[n.replace("past_key_values", "present")] for n in self.carried}
        logits: np.ndarray = after["logits"].numpy()
        return logits, places if client.every else 0 * places
