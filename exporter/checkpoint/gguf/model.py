"""What a GGUF file says of its model: typed keys, tensors, and what architectures share."""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from lmcast.exporter.checkpoint.errors import CheckpointError
from lmcast.exporter.checkpoint.files import open_regular, read_into
from lmcast.exporter.checkpoint.gguf.header import Entry, Header
from lmcast.exporter.checkpoint.gguf.metadata import Metadata
from lmcast.exporter.dtypes import COMPUTED

FREQUENCIES = "rope_freqs.weight"  # what each rotary frequency is divided by
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"  # the same, of LongRoPE
RMS_EPSILON = "attention.layer_norm_rms_epsilon"
SIGMOID = 2  # expert_gating_func, as llama.cpp numbers them; 1 is a softmax


class Model:
    """Access to the keys of one architecture, written without its name, and to its tensors."""

    def __init__(self, header: Header, metadata: Metadata):
        self.header, self.metadata = header, metadata
        self.held = set[str]()  # tensors that are read for the config, which holds them

    def error(self, message: str) -> CheckpointError:
        return self.metadata.error(message)

    def key(self, name: str) -> str:
        return self.metadata.own(name)

    def has(self, name: str) -> bool:
        return self.metadata.has(self.key(name))

    def integer(self, name: str, default: int | None = None) -> int:
        return self.metadata.integer(self.key(name), default)

    def count(self, name: str, default: int | None = None) -> int:
        """Return an integer from 0 on."""
        return self.metadata.count(self.key(name), default)

    def number(self, name: str, default: float | None = None) -> float:
        return self.metadata.number(self.key(name), default)

    def flag(self, name: str, default: bool) -> bool:
        return self.metadata.flag(self.key(name), default)

    def each(self, name: str, kind: type, default: Any = None) -> list[Any]:
        """Return a value for each layer: a list, or one for all."""
        value = self.metadata.values.get(self.key(name), default)
        if value is None or type(value) is kind:
            self.metadata.read.add(self.key(name))
            if value is None:
                raise self.error(f"{self.key(name)} is missing; the model cannot be built without")
            return [value] * self.layers
        values: list[Any] = self.metadata.items(self.key(name), kind)
        if len(values) < self.layers:
            raise self.error(f"{self.key(name)} has {len(values)} entries for {self.layers} layers")
        return values[: self.layers]

    def same(self, name: str, default: int | None = None) -> int:
        """Return the one positive integer that holds for all layers."""
        values = set(self.each(name, int, default))
        if len(values) != 1 or min(values) < 1:
            raise self.error(
                f"{self.key(name)} is {sorted(values)}; accepted: one positive integer for all"
                " layers"
            )
        return int(values.pop())

    def ignore(self, prefix: str) -> None:
        """Take for read all keys that begin so, as no part of the model is concerned."""
        whole = self.key(prefix)
        self.metadata.read.update(key for key in self.metadata.values if key.startswith(whole))

    @cached_property
    def layers(self) -> int:
        """The number of layers, without those that predict further tokens."""
        blocks, ahead = self.integer("block_count"), self.count("nextn_predict_layers", 0)
        if blocks > len(self.header.tensors) or ahead >= blocks:
            raise self.error(
                f"{self.key('block_count')} is {blocks}, of which {ahead} predict further tokens,"
                f" but the file has {len(self.header.tensors)} tensors; it is damaged"
            )
        return blocks - ahead

    def entry(self, name: str) -> Entry | None:
        return self.header.tensors.get(name)

    def layer_entries(self, part: str) -> Iterator[Entry | None]:
        """Yield the tensor of that name of each layer: 'ffn_gate.weight'."""
        return (self.entry(f"blk.{layer}.{part}") for layer in range(self.layers))

    def any_ends(self, *ends: str) -> bool:
        return any(name.endswith(ends) for name in self.header.tensors)

    def frequencies(self, name: str, length: int) -> np.ndarray | None:
        """Return a small tensor of the file, float32 [length]; None if it has none."""
        entry = self.entry(name)
        if entry is None:
            return None
        if entry.kind.name != "F32" or entry.shape != (length,):
            raise self.error(
                f"tensor {name!r} is {entry.kind.name} {list(entry.shape)}; accepted: F32"
                f" [{length}]"
            )
        self.held.add(name)
        raw = bytearray(entry.nbytes)
        with open_regular(entry.path) as descriptor:
            read_into(descriptor, memoryview(raw), entry.offset, entry.path)
        return np.frombuffer(raw, "<f4")


def shared(m: Model, epsilon: str = RMS_EPSILON) -> dict[str, Any]:
    """The keys of all architectures."""
    require(m, "attention.causal", True)
    hidden = m.integer("embedding_length")
    return {
        "dtype": _dtype(m),
        "vocab_size": _vocabulary(m),
        "hidden_size": hidden,
        "num_hidden_layers": m.layers,
        "num_attention_heads": m.integer("attention.head_count"),
        "rms_norm_eps": m.number(epsilon),
        "max_position_embeddings": m.integer("context_length"),
        "tie_word_embeddings": m.entry("output.weight") is None,
    }


def require(m: Model, name: str, value: bool) -> None:
    """Refuse a flag that says otherwise; one that is not there says nothing."""
    if m.flag(name, value) != value:
        raise m.error(f"{m.key(name)} is {str(not value).lower()}; accepted: {str(value).lower()}")


def heads(m: Model, partial: bool = False) -> dict[str, Any]:
    """Keys of plain attention; `partial`: heads may rotate in part."""
    hidden, count = m.integer("embedding_length"), m.integer("attention.head_count")
    key = "attention.key_length"
    if not m.has(key) and hidden % count:
        raise m.error(f"{m.key(key)} is missing and {hidden} is not a multiple of {count} heads")
    width = m.integer(key, hidden // count)
    others = (
        ["attention.value_length"]
        if partial
        else ["attention.value_length", "rope.dimension_count"]
    )
    for name in others:
        other = m.integer(name, width)
        if other != width:
            raise m.error(f"{m.key(name)} is {other}; only the head's {width} is accepted")
    if width % 2:
        raise m.error(f"heads are {width} wide; only an even width can be rotated")
    return {
        "num_key_value_heads": m.same("attention.head_count_kv", count),
        "head_dim": width,
        "attention_bias": m.any_ends("_q.bias", "_k.bias", "_v.bias", "_output.bias"),
    }


def dense(m: Model) -> dict[str, Any]:
    return {"intermediate_size": m.same("feed_forward_length"), "hidden_act": "silu"}


def rope(m: Model, width: int) -> dict[str, Any]:
    """Return rope_parameters of `width` rotated numbers a head.

    What is missing of YaRN has the same default in llama.cpp and in Hugging Face.
    """
    kind = m.metadata.text(m.key("rope.scaling.type"), "none")
    theta = m.number("rope.freq_base", 10000.0)
    out: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if kind in ("linear", "yarn"):
        out |= {"rope_type": kind, "factor": m.number("rope.scaling.factor")}
    elif kind != "none":
        raise m.error(f"{m.key('rope.scaling.type')} is {kind!r}; accepted: none, linear, yarn")
    if kind == "yarn":
        original = m.integer("rope.scaling.original_context_length")
        out["original_max_position_embeddings"] = original
        for ours, theirs in (("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if m.has(f"rope.scaling.yarn_{theirs}"):
                out[ours] = m.number(f"rope.scaling.yarn_{theirs}")
        if m.has("rope.scaling.yarn_attn_factor"):
            factor = m.number("rope.scaling.yarn_attn_factor")
            if not np.isclose(factor, 0.1 * np.log(out["factor"]) + 1, rtol=1e-6):  # of float32
                out["attention_factor"] = factor
    factors = m.frequencies(FREQUENCIES, width // 2)
    if factors is None:
        return out
    if kind != "none":
        raise m.error(f"tensor {FREQUENCIES!r} is only accepted without rope.scaling")
    return out | _llama3(m, factors, theta)


def _llama3(m: Model, factors: np.ndarray, theta: float) -> dict[str, Any]:
    """The llama3 rope whose formula gives these factors; its inputs are not in the file.

    All of Llama 3.1 to 3.3 share low 1, high 4 and 8192 original positions, Llama 4 has 1 for both;
    the factor itself is what the longest wavelength is divided by.
    """
    original, factor = 8192, float(factors[-1])
    if (factors == 1).all():
        return {}
    index = np.arange(len(factors))
    turns = original * theta ** (-index / len(factors)) / (2 * np.pi)  # per original context
    for low, high in ((1.0, 4.0), (1.0, 1.0)):
        smooth = np.where(turns > high, 1.0, 0.0)
        if high > low:
            smooth = (np.clip(turns, low, high) - low) / (high - low)
        with np.errstate(all="ignore"):
            expected = 1 / ((1 - smooth) / factor + smooth)
        # 1e-4: the converter evaluates it in float32 and the blend magnifies that by the factor.
        if np.allclose(factors, expected, rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    raise m.error(
        f"tensor {FREQUENCIES!r} holds factors other than Llama 3.1's formula gives; use the"
        " original Hugging Face checkpoint instead"
    )


def _dtype(m: Model) -> str:
    """The precision of most matrices; norms and routers are in F32 whatever the rest is."""
    sizes = Counter[str]()
    for entry in m.header.tensors.values():
        sizes[entry.kind.name] += entry.nbytes if len(entry.shape) > 1 else 0
    names = {dtype.safetensors: name for name, dtype in COMPUTED.items()}  # ggml's, too
    return names.get(max(sizes, key=lambda name: sizes[name], default=""), "float32")


def _vocabulary(m: Model) -> int:
    embedding = m.entry("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise m.error("tensor 'token_embd.weight' is missing or has not two axes")
    rows = embedding.shape[0]
    if m.integer("vocab_size", rows) != rows:
        raise m.error(
            f"{m.key('vocab_size')} disagrees with the {rows} rows of 'token_embd.weight'"
        )
    return rows
