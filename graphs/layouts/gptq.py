"""GPTQ (AutoGPTQ, GPTQModel): integers in words along the inputs, input-first."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from lmcast.graphs.config.inert import Inert, at_any_value
from lmcast.graphs.config.reading import ConfigError, parse
from lmcast.graphs.layouts.stored import bytes_of, require_shape
from lmcast.graphs.layouts.tensors import FLOATS, Found, Tensors, by_patterns, listed_as
from lmcast.graphs.weights.elements import INT4, INT8, halves
from lmcast.graphs.weights.quantized import Layout, Quantized, ReadRows, Scheme, Shapes, WeightError

# How the quantizing went and what runs the result: nothing of it changes what is stored.
_INERT = """
act_group_aware backend batch_size block_name_to_quantize cache_block_outputs
checkpoint_meta damp_auto_increment damp_percent dataset disable_exllama exllama_config fail_safe
failsafe
max_input_length meta model_file_base_name model_name_or_path model_seqlen
module_name_preceding_first_block modules_in_block_to_quantize mse offload_to_disk
offload_to_disk_path pad_token_id quantizer static_groups tokenizer true_sequential use_cuda_fp16
use_exllama
"""
# The same of AutoRound, which writes sections of GPTQ and AWQ too; which blocks, tensors tell.
_TUNING = """
act_bits act_data_type act_dynamic act_group_size act_sym amp autoround_version backend batch_size
block_name_to_quantize dataset enable_minmax_tuning enable_norm_bias_tuning enable_quanted_input
gradient_accumulate_steps iters low_cpu_mem_usage low_gpu_mem_usage lr minmax_lr
modules_in_block_to_quantize not_use_best_mse nsamples provider quant_block_list sampler scale_dtype
seed seqlen static_kv_dtype static_kv_granularity supported_types to_quant_block_names
"""
TUNING = _TUNING.split()
INERT = (*_INERT.split(), *TUNING)
# What entries of `dynamic` begin with: modules by the pattern behind it are plain, or differ.
LEFT, PREFIX = "-:", re.compile(r"^[-+]:")


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """A quantization_config of GPTQ; which modules are quantized, their tensors tell."""

    quant_method: Literal["gptq"]
    bits: Literal[4, 8]
    group_size: int  # -1: a row
    desc_act: bool = False  # the groups are not runs of neighbours
    sym: bool = True
    checkpoint_format: Literal["gptq", "gptq_v2"] = "gptq"
    format: Literal["gptq", "gptq_v2"] | None = None
    method: Literal["gptq"] | None = None
    lm_head: bool = False
    pack_dtype: Literal["int32"] = "int32"
    data_type: Literal["int"] = "int"
    # Of modules that differ, in order: the entry, how what it matches is quantized; None: not.
    dynamic: tuple[tuple, ...] = ()

    def __post_init__(self) -> None:
        if self.group_size < 1 and self.group_size != -1:
            raise ValueError(f"group_size is {self.group_size}; accepted: -1 or from 1")
        if self.format not in (None, self.checkpoint_format):
            raise ValueError(f"format is {self.format!r}, checkpoint_format another; accepted: one")

    def find(self, tensors: Tensors) -> Found:
        """Return the weights of all modules that have words."""
        modules = tensors.modules("qweight")
        if not modules:
            raise ConfigError("quant_method is 'gptq', but no tensor is quantized (X.qweight)")
        own: dict[str, Gptq | None] = dict(self.dynamic)
        find = by_patterns({entry: PREFIX.sub("", entry) for entry in own})
        layouts: dict[str, Layout] = {}
        for module in modules:
            entry = find(module)
            if entry is not None and own[entry] is None:
                raise ConfigError(f"dynamic has {entry!r}, but {module} is quantized; one is wrong")
            entry = listed_as(module, find)
            how = self if entry is None else own[entry] or self
            layouts[f"{module}.weight"] = how.layout(tensors, module)
        return Found(layouts)

    def layout(self, tensors: Tensors, module: str) -> "InputFirst":
        """Return how a module's weight is stored; raises WeightError where its tensors do not
        fit."""
        packed = f"{module}.qweight"
        for name in (packed, f"{module}.qzeros"):
            tensors.dtype(name, (torch.int32,), packed)
        scale = tensors.dtype(f"{module}.scales", FLOATS, packed)
        order = f"{module}.g_idx"
        if self.desc_act or order in tensors.shapes:
            tensors.dtype(order, (torch.int32, torch.int64), packed)
        if len(tensors.shapes[packed]) != 2:
            raise WeightError(
                f"tensor {packed} has shape {list(tensors.shapes[packed])}; accepted: a matrix"
            )
        group = 0 if self.group_size == -1 else self.group_size
        return InputFirst(
            Scheme(INT4 if self.bits == 4 else INT8, (1, group), scale, zeros=not self.sym),
            module,
            order if order in tensors.shapes else None,
            sorted=not self.desc_act,
            offset=1 if self.checkpoint_format == "gptq" else 0,
        )


def read(raw: Mapping[str, Any], at: str, inert: Inert) -> Gptq:
    """Parse a quantization_config; raises ConfigError for keys and values that are not read."""
    path = at.rpartition(": ")[2]
    known = {**inert, **at_any_value(f"{path}{key}" for key in INERT)}
    entries = raw.get("dynamic") or {}
    if not isinstance(entries, Mapping):
        raise ConfigError(f"{at}dynamic is {entries!r:.80}; accepted: an object")
    general = {key: raw[key] for key in raw.keys() & {f.name for f in fields(Gptq)} - {"dynamic"}}
    parsed: list[tuple[str, Gptq | None]] = []
    for name, own in entries.items():
        within = f"dynamic.{name}."
        if name.startswith(LEFT):
            parsed.append((name, None))
            continue
        if not isinstance(own, Mapping):
            raise ConfigError(f"{at}{within[:-1]} is {own!r:.80}; accepted: an object")
        also = {**known, **at_any_value(f"{path}{within}{key}" for key in INERT)}
        parsed.append((name, parse(Gptq, {**general, **own}, f"{at}{within}", also)))
    return parse(Gptq, {**raw, "dynamic": parsed}, at, known)


@dataclass(frozen=True)
class InputFirst:
    """Words K * bits / 32,N; scales G,N; zeros G,N * bits / 32, `offset` less than they are.

    order: the group of every column, which must be that of its place if `sorted`.
    """

    format: Scheme
    module: str
    order: str | None
    sorted: bool
    offset: int

    @property
    def tensors(self) -> tuple[str, ...]:
        names = tuple(f"{self.module}.{leaf}" for leaf in ("qweight", "qzeros", "scales"))
        return (*names, *([self.order] if self.order else []))

    @property
    def scheme(self) -> Scheme | None:
        return self.format if self.sorted else None

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        words, rows = shapes[self.tensors[0]]
        columns = words * 32 // self.format.bits
        high = self.format.scales_shape((rows, columns))[1]
        how = f"groups of {self.format.block[1] or columns}"
        name = self.tensors[0]
        require_shape(self.tensors[2], shapes, [(high, rows)], name, how)
        require_shape(self.tensors[1], shapes, [(high, rows * self.format.bits // 32)], name, how)
        if self.order:
            require_shape(self.order, shapes, [(columns,)], name, "columns")
        return rows, columns

    def values(self, read: ReadRows, begin: int, end: int) -> Tensor:
        if self.sorted:
            return self.codes(read, begin, end).dequantize()
        assert self.order is not None
        codes, scales, zeros = self._parts(read, begin, end)
        groups = read(self.order, 0, None).long()
        if not 0 <= int(groups.min()) <= int(groups.max()) < scales.shape[1]:
            raise WeightError(
                f"tensor {self.order} has group {int(groups.max())} of {scales.shape[1]}"
            )
        numbers = self.format.element.decode(codes) - zeros[:, groups]
        return numbers.mul_(scales.float()[:, groups])

    def codes(self, read: ReadRows, begin: int, end: int) -> Quantized:
        codes, scales, zeros = self._parts(read, begin, end)
        if self.order is not None:
            self._require_sorted(read(self.order, 0, None))
        return Quantized(self.format, codes, scales, zeros=zeros if self.format.zeros else None)

    def _parts(self, read: ReadRows, begin: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes n,K in bytes, scales n,G and zeros n,G of rows of the weight."""
        packed, packed_zeros, scales = (read(name, 0, None) for name in self.tensors[:3])
        bits = self.format.bits
        codes = bytes_of(packed[:, begin:end].T) ^ self.format.element.signs
        numbers = bytes_of(packed_zeros)  # G,N * bits / 8
        stored = (halves(numbers) if bits == 4 else numbers).short()[:, begin:end].T
        if self.offset and (stored == (1 << bits) - 1).any():
            # Tools disagree whether this is a zero of 0 or of the whole range.
            raise WeightError(
                f"tensor {self.tensors[1]} holds {(1 << bits) - 1}, which has no one meaning in"
                " checkpoint_format 'gptq'; save the checkpoint as 'gptq_v2'"
            )
        zeros = stored + self.offset - (1 << (bits - 1))
        if not self.format.zeros and zeros.any():
            raise WeightError(
                f"tensor {self.tensors[1]} has zeros beside the middle of the range, but"
                " quantization_config.sym is true; one of the two is wrong"
            )
        return codes, scales[:, begin:end].T, zeros

    def _require_sorted(self, order: Tensor) -> None:
        size = self.format.block[1] or len(order)
        if not torch.equal(order.long(), torch.arange(len(order)) // size):
            raise WeightError(
                f"tensor {self.order} does not count up by groups of {size}, but"
                " quantization_config.desc_act is false; one of the two is wrong"
            )
