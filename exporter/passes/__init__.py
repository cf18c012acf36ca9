"""Rewrites of the portable graph: one pass a file; what each runtime gets, in order."""

from collections.abc import Callable, Iterable

import onnx_ir as ir

from lmcast.exporter.passes.block_products import block_products
from lmcast.exporter.passes.exact_products import exact_products
from lmcast.exporter.passes.fold_small import fold_small
from lmcast.exporter.passes.fused_attention import fused_attention
from lmcast.exporter.passes.fused_matmul import fused_matmul
from lmcast.exporter.passes.group_query_attention import group_query_attention
from lmcast.exporter.passes.group_query_attention_fp8 import group_query_attention_fp8
from lmcast.exporter.passes.inline_bodies import inline_bodies
from lmcast.exporter.passes.inline_codes import inline_codes
from lmcast.exporter.passes.inline_parts import inline_parts
from lmcast.exporter.passes.known_sizes import known_sizes
from lmcast.exporter.passes.latents_by_length import latents_by_length
from lmcast.exporter.passes.merge_equal import merge_equal
from lmcast.exporter.passes.merge_runs import merge_runs
from lmcast.exporter.passes.multi_head_attention import multi_head_attention
from lmcast.exporter.passes.nbits_gather import nbits_gather
from lmcast.exporter.passes.nbits_matmul import nbits_matmul
from lmcast.exporter.passes.nbits_matmul_exact import nbits_matmul_exact
from lmcast.exporter.passes.norms_in_attention import norms_in_attention
from lmcast.exporter.passes.outer_reductions import outer_reductions
from lmcast.exporter.passes.packed_attention import packed_attention
from lmcast.exporter.passes.packed_products import packed_products
from lmcast.exporter.passes.quantized_experts import quantized_experts
from lmcast.exporter.passes.quantized_products import quantized_products
from lmcast.exporter.passes.quick_gelu import quick_gelu
from lmcast.exporter.passes.recurrent_kernels import recurrent_kernels
from lmcast.exporter.passes.remove_unused import remove_unused
from lmcast.exporter.passes.rotary_in_attention import rotary_in_attention
from lmcast.exporter.passes.sizes_by_shape import sizes_by_shape
from lmcast.exporter.passes.skip_norm import skip_norm
from lmcast.exporter.passes.sliced_ranges import sliced_ranges
from lmcast.exporter.passes.split_experts import split_experts
from lmcast.exporter.passes.total_length import total_length
from lmcast.exporter.passes.undo_heads import undo_heads
from lmcast.exporter.passes.undo_reshape import undo_reshape
from lmcast.exporter.passes.weighted_norm import weighted_norm
from lmcast.exporter.passes.whole_windows import whole_windows
from lmcast.exporter.passes.wide_operators import wide_operators

Pass = Callable[[ir.Model], int]

PORTABLE: tuple[Pass, ...] = (inline_codes, merge_runs)
CPU: tuple[Pass, ...] = (
    inline_parts,
    group_query_attention,
    latents_by_length,
    recurrent_kernels,
    split_experts,
    undo_heads,
    multi_head_attention,
    undo_reshape,
    nbits_matmul,
    nbits_gather,
    fused_matmul,
    skip_norm,
    quick_gelu,
    merge_equal,
    remove_unused,
    packed_attention,
    remove_unused,
)
EXACT: tuple[Pass, ...] = (exact_products,)  # after those of CPU, where kernels may not round
CUDA: tuple[Pass, ...] = (
    inline_parts,
    group_query_attention_fp8,
    whole_windows,
    total_length,
    inline_bodies,
    undo_heads,
    undo_reshape,
    nbits_matmul_exact,
    nbits_gather,
    block_products,
    quantized_experts,
    fused_matmul,
    weighted_norm,
    merge_equal,
    remove_unused,
    rotary_in_attention,
    norms_in_attention,
    sliced_ranges,
    known_sizes,
    sizes_by_shape,
    fold_small,
    skip_norm,
    quick_gelu,
    remove_unused,
    packed_products,
    wide_operators,
    outer_reductions,
    merge_equal,
    remove_unused,
)
TENSORRT: tuple[Pass, ...] = (
    inline_parts,
    quantized_products,
    inline_bodies,
    fused_attention,
    merge_equal,
    remove_unused,
)


def run(model: ir.Model, passes: Iterable[Pass]) -> dict[str, int]:
    """Apply passes in place, in order: pass -> number of changes."""
    return {apply.__name__: apply(model) for apply in passes}
