"""NVIDIA Triton: a model repository that has an engine twice.

lmcast, for the Python backend: text or token ids in, text or token ids out, by lmcast itself.
lmcast_step, for the ONNX Runtime backend: token ids in, logits of the last out, for programs that
pick tokens themselves; Triton carries the states from request to request of a sequence. Its source
(github.com/triton-inference-server: core, onnxruntime_backend) has these rules:

* A state has the slots that `dims` says from its first request on, and each request copies it.
* Requests that are run as one batch have as many tokens each.
* States are found by their place among names: before and after a request they must sort alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from lmcast.exporter.clients.adapt import Adapting
from lmcast.exporter.clients.contract import ROWS, TOKENS, Call, Contract, Held, Port, given
from lmcast.exporter.clients.write import read, unable
from lmcast.exporter.engine.manifest import EngineError, read_manifest
from lmcast.exporter.engine.names import ENGINE_JSON, TOKENIZER, WEIGHTS
from lmcast.exporter.engine.staging import carry
from lmcast.plugins.onnx_builder import Builder, Value

if TYPE_CHECKING:
    from lmcast.exporter.engine.description import Description

SLOTS = 2048  # of a cache at most, as it is written
ROWS_OF_A_BATCH = 8
IDLE_SECONDS = 600  # until a sequence that nobody continues is forgotten
LENGTHS = "cache_lengths"
TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.INT64: "TYPE_INT64",
}


def place(engine: Path, directory: Path) -> None:
    """Lay out a model repository with both models of an engine; its files are hard links if they
    can be. Raises EngineError for states that Triton has no type for."""
    manifest = read_manifest(engine)
    about = manifest.about
    served, step = directory / "lmcast" / "1", directory / "lmcast_step" / "1"
    for path in map(Path, [ENGINE_JSON, *(file.path for file in manifest.files)]):
        carry(engine / path, served / "engine" / path)
        if path.parts[0] == WEIGHTS:
            carry(engine / path, step / path)
    graph = read(engine, about)
    adapting = Adapting(graph, about.graph.states, contract)
    if why := unable(graph, about) or refuse(adapting.held, about):
        raise EngineError(f"{engine}: cannot be packed for triton: {why}")
    logits = next(value.dtype for value in graph.graph.outputs if value.name == "logits")
    assert logits is not None
    step.mkdir(parents=True, exist_ok=True)
    text = step_config(about, adapting.ports, TYPES[logits])
    (step.parent / "config.pbtxt").write_text(text)
    data = ir.to_proto(adapting.run()).SerializeToString(deterministic=True)
    (step / contract.graph).write_bytes(data)
    text = served_config(about, texts=(engine / TOKENIZER).exists())
    (served.parent / "config.pbtxt").write_text(text)
    (served / "model.py").write_text(MODEL)


def prologue(op: Builder) -> Call:
    """All rows have all tokens of the call, and give the logits of the last. Rows that held how
    many tokens is a state, too."""
    ids = Value(op, given("input_ids", ROWS, TOKENS))
    held = Value(op, given(f"{LENGTHS}.past", ROWS, 1))
    rows, tokens = op.size(ids, 0), op.size(ids, 1)
    counts, last = op.Expand(tokens, rows), op.Expand(tokens - 1, op.dims(rows, 1))
    lengths, longest = op.Squeeze(held, [1]), op.ReduceMax(held, keepdims=0) + tokens
    kept = held + tokens
    kept.ir.name, kept.ir.type = f"{LENGTHS}.present", ir.TensorType(ir.DataType.INT64)
    kept.ir.shape = ir.Shape([ROWS, 1])
    return Call((ids, held), ids, lengths, counts, last, longest, (ROWS, 1), (kept,))


def ports(held: Sequence[Held], call: Call) -> list[Port]:
    return [carried(state) for state in held]


def carried(state: Held) -> Port:
    """Return a state as it is."""
    axes = (ROWS, *state.shape[1:])

    def split(op: Builder, past: Value) -> list[Value]:
        return [past]

    def join(op: Builder, past: Value, presents: Sequence[Value]) -> Value:
        return presents[0]

    names = f"{state.name}.past", f"{state.name}.present"
    return Port(*names, state.dtype, axes, axes, (state,), split, join)


def refuse(held: Sequence[Held], about: "Description") -> str:
    """Say why Triton cannot hold states, '' where it can."""
    unknown = sorted({state.dtype.name for state in held if state.dtype not in TYPES})
    return f"Triton has no states of {', '.join(unknown)}" if unknown else ""


contract = Contract(
    name="triton",
    about="the ONNX Runtime backend of Triton",
    graph="model.onnx",
    prologue=prologue,
    ports=ports,
    grows=False,
    crowded="a_sequence_has_more_tokens_than_dims_of_its_states",
    refuse=refuse,
    files=lambda about, ports, ids: {},
)


def step_config(about: "Description", ports: Sequence[Port], logits: str) -> str:
    """Return config.pbtxt of the model that gives logits. It has no name: the folder's counts."""
    slots, lines = min(about.context, SLOTS), ",\n"
    states = [state_text(LENGTHS, ir.DataType.INT64, (1,))]
    for port in ports:
        axes = [axis if isinstance(axis, int) else slots for axis in port.before[1:]]
        states.append(state_text(port.past.removesuffix(".past"), port.dtype, axes))
    return f"""\
# States have room for {slots} tokens of a sequence. For another number, write it into their dims:
# every request copies them whole.
backend: "onnxruntime"
max_batch_size: {ROWS_OF_A_BATCH}
input [ {{ name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] }} ]
output [ {{ name: "logits" data_type: {logits} dims: [ 1, {about.vocab_size} ] }} ]
sequence_batching {{
  max_sequence_idle_microseconds: {IDLE_SECONDS * 1_000_000}
  oldest {{ max_candidate_sequences: {ROWS_OF_A_BATCH} }}
  state [
{lines.join(states)}
  ]
}}
{instances(about)}
"""


def state_text(name: str, dtype: ir.DataType, axes: Sequence[int]) -> str:
    """Return what config.pbtxt says of a state: zeros at first, in one buffer before and after."""
    dims = f"data_type: {TYPES[dtype]} dims: [ {', '.join(map(str, axes))} ]"
    return f"""\
    {{
      input_name: "{name}.past" output_name: "{name}.present" {dims}
      use_same_buffer_for_input_output: true
      initial_state [ {{ name: "zeros" {dims} zero_data: true }} ]
    }}"""


def served_config(about: "Description", texts: bool) -> str:
    """Return config.pbtxt of the model that lmcast runs; texts: whether it has a tokenizer.

    Decoupled: a text may be streamed, as by Triton's own backends of language models.
    """
    text = [("text_input", "TYPE_STRING", 1)], [("stream", "TYPE_BOOL", 1)]
    inputs = [
        *(text[0] if texts else ()), ("input_ids", "TYPE_INT64", -1),
        ("max_tokens", "TYPE_INT32", 1), ("temperature", "TYPE_FP32", 1),
        *(text[1] if texts else ()),
    ]  # fmt: skip
    outputs = [("text_output", "TYPE_STRING", 1)] if texts else []
    outputs.append(("output_ids", "TYPE_INT64", -1))
    given = [
        f'  {{ name: "{n}" data_type: {t} dims: [ {d} ] optional: true }}' for n, t, d in inputs
    ]
    made = [
        f'  {{ name: "{name}" data_type: {kind} dims: [ {dim} ] }}' for name, kind, dim in outputs
    ]
    lines = ",\n"
    return f"""\
backend: "python"
model_transaction_policy {{ decoupled: true }}
input [
{lines.join(given)}
]
output [
{lines.join(made)}
]
{instances(about)}
"""


def instances(about: "Description") -> str:
    return (
        f"instance_group [ {{ kind: {'KIND_GPU' if about.graph.total_length else 'KIND_CPU'} }} ]"
    )


# model.py of the Python backend. lmcast needs NumPy 2, taken from Triton 24.11 on; before,
# arrays have no bytes, or the process ends ("Stub process is not healthy").
MODEL = '''\
"""Answers requests with the engine beside this file: `pip install lmcast` where Triton runs."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as triton

from lmcast.exporter import load
from lmcast.exporter.runtime.sampling import Sampling
from lmcast.plugins.errors import InputError


class TritonPythonModel:
    def initialize(self, args):
        self.engine = load(Path(__file__).parent / "engine")

    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                for tensors in self.answers(request, sender):
                    sender.send(triton.InferenceResponse(tensors))
            except (InputError, UnicodeDecodeError) as error:
                sender.send(triton.InferenceResponse(error=triton.TritonError(str(error))))
            finally:
                sender.send(flags=triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def answers(self, request, sender):
        """Yield the tensors of each response; texts that are streamed are sent at once."""
        text, ids = given(request, "text_input"), given(request, "input_ids")
        if (text is None) == (ids is None):
            raise InputError("text_input and input_ids: give one of them")
        most, warmth = given(request, "max_tokens"), given(request, "temperature")
        options = {} if most is None else {"max_new_tokens": int(most[0])}
        if warmth is not None:
            options["sampling"] = Sampling(temperature=float(warmth[0]))
        stream = given(request, "stream")
        if text is None:
            (made,) = self.engine.generate([ids.tolist()], **options)
            yield [triton.Tensor("output_ids", np.array(made.ids, np.int64))]
        elif stream is None or not stream[0]:
            (made,) = self.engine.generate([text[0].decode()], **options)
            yield [as_text(made.text)]
        else:
            def send(row, piece):
                sender.send(triton.InferenceResponse([as_text(piece)]))

            self.engine.generate([text[0].decode()], on_token=send, **options)


def given(request, name):
    """Return an input, flat, or None where the request has none."""
    tensor = triton.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy().reshape(-1)


def as_text(text):
    return triton.Tensor("text_output", np.array([text.encode()], object))
'''
