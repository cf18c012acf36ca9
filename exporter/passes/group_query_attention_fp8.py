"""Fuse attention into GroupQueryAttention, caches in FP8 too, which the kernel for GPUs has.

before: y, key, value = lmcast.cached_attention(q, k, v, past_key, past_value, lengths, counts,
        key_scale, value_scale)
after:  y, key, value = com.microsoft.GroupQueryAttention(q, k, v, past_key, past_value, ...,
        key_scale, value_scale)

All else is as in group_query_attention.
"""

import onnx_ir as ir

from lmcast.exporter.passes.group_query_attention import fused


def group_query_attention_fp8(model: ir.Model) -> int:
    return fused(model, codes=True)
