"""Fuse attention without a mask, as towers have it, into a kernel that keeps no scores.

before: y = Attention <q_num_heads = H, kv_num_heads = H> (q, k, v), each N,S,H*d
after:  y = com.microsoft.MultiHeadAttention <num_heads = H> (q, k, v)

On a CPU, 4,096 patches of width 1152 take 41 MB instead of 1.04 GB, and a third of the time. Fewer
heads of keys than of queries, caps and causal attention keep the operator. Not for GPUs: there it
needs cuDNN, and Attention itself is a flash kernel.
"""

import onnx_ir as ir

from lmcast.exporter.passes.rewrite import MICROSOFT, insert, nodes_of, replace

# Attributes and their only value that the kernel knows, which is the default of most; the softmax
# is in fp32.
KNOWN = {"is_causal": 0, "qk_matmul_output_mode": 0, "softcap": 0.0, "softmax_precision": 1}


def multi_head_attention(model: ir.Model) -> int:
    changes = 0
    for node in nodes_of(model, "Attention"):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        heads = attributes.pop("q_num_heads", 0)
        if not heads or attributes.pop("kv_num_heads", 0) != heads or len(node.inputs) != 3:
            continue
        scale = attributes.pop("scale", None)
        if any(KNOWN.get(name) != value for name, value in attributes.items()):
            continue
        known = {"num_heads": heads} | ({} if scale is None else {"scale": scale})
        name = str(node.name)
        (made,) = insert(
            model, node, "MultiHeadAttention", node.inputs, known, name=name, domain=MICROSOFT
        )
        replace(model, node, [made, *node.outputs[1:]])
        changes += 1
    return changes
