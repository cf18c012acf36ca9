"""The tensors of a GGUF file under Hugging Face names, in Hugging Face layouts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants
from torch import Tensor

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.gguf.config import FAMILIES, FREQUENCIES, Family
from lmcast.exporter.checkpoint.gguf.header import Entry, Header
from lmcast.exporter.checkpoint.tensors import StoredTensor
from lmcast.exporter.dtypes import COMPUTED

PLAIN = {dtype.safetensors: dtype.torch for dtype in COMPUTED.values()}  # ggml has these names too
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
QUERY_KEY_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
LAYERS = {
    "llama": LAYER,
    "qwen2": LAYER,
    "qwen3": LAYER | QUERY_KEY_NORMS,
    "gemma3_text": LAYER
    | QUERY_KEY_NORMS
    | {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
NAME = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,4})\.)?([a-z_]+)\.(weight|bias)")


@dataclass(frozen=True)
class Decode:
    """Stored rows of axis 0 -> values, with what the converter to GGUF did undone."""

    kind: GGMLQuantizationType
    row: tuple[int, ...]  # shape of one row
    head_dim: int = 0  # 0, or the width of heads whose rows go from pairs back to halves
    offset: float = 0.0  # was added to every value

    @property
    def format(self) -> str:
        return self.kind.name

    def __call__(self, raw: np.ndarray) -> Tensor:
        values = self._values(raw).reshape(-1, *self.row)
        if self.head_dim:
            # Row 2i + j of a head is row j * head_dim / 2 + i of Hugging Face's.
            pairs = values.reshape(-1, self.head_dim // 2, 2, *self.row)
            values = pairs.transpose(1, 2).reshape(values.shape)
        return values - self.offset if self.offset else values

    def _values(self, raw: np.ndarray) -> Tensor:
        if self.kind.name in PLAIN:
            values = torch.from_numpy(raw).view(PLAIN[self.kind.name])
            return values.float() if self.offset else values
        columns = self.row[-1]
        with np.errstate(all="ignore"):  # scales that are not finite are found by whoever reads
            shape = quants.quant_shape_to_byte_shape((-1, columns), self.kind)
            return torch.from_numpy(quants.dequantize(raw.reshape(shape), self.kind))


def hugging_face_tensors(header: Header, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return every tensor of the file but the rotary factors, which the config holds."""
    tensors: dict[str, StoredTensor] = {}
    for entry in header.tensors.values():
        if entry.name == FREQUENCIES:
            continue
        stored = _stored(header, entry, config)
        tensors[stored.name] = stored
    return tensors


def _stored(header: Header, entry: Entry, config: Mapping[str, Any]) -> StoredTensor:
    family: Family = FAMILIES[header.metadata["general.architecture"]]
    name, part = _name(header, entry.name, family)
    offset = family.norm_offset if name.endswith("norm.weight") else 0.0
    head_dim = config["head_dim"] if family.permuted and part in ("attn_q", "attn_k") else 0
    if head_dim and entry.shape[0] % head_dim:
        raise CheckpointError(
            f"{header.path}: tensor {entry.name!r} has {entry.shape[0]} rows, not a multiple of the"
            f" head's {head_dim}"
        )
    plain = PLAIN.get(entry.kind.name)
    decode = None
    if plain is None or head_dim or offset:
        decode = Decode(entry.kind, entry.shape[1:], head_dim, offset)
    return StoredTensor(
        name=name,
        dtype=torch.float32 if plain is None or offset else plain,
        shape=entry.shape,
        file=entry.path,
        offset=entry.offset,
        nbytes=entry.nbytes,
        decode=decode,
        row_multiple=head_dim or 1,
    )


def _name(header: Header, name: str, family: Family) -> tuple[str, str]:
    """Return the Hugging Face name and the part of a layer ('attn_q') that a tensor is."""
    match = NAME.fullmatch(name)
    layer, part, kind = match.groups() if match else (None, "", "")
    theirs = (OUTER if layer is None else LAYERS[family.model_type]).get(part)
    if theirs is None:
        raise CheckpointError(
            f"{header.path}: tensor {name!r} is none of {family.model_type}'s; lmcast does not know"
            " this model in GGUF: use the original Hugging Face checkpoint"
        )
    return f"{theirs if layer is None else f'model.layers.{layer}.{theirs}'}.{kind}", part
