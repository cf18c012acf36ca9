"""Graphs for the passes of target cuda for weights and caches in few bits, as in pass_cases.py."""

from attention_cases import GQA
from cuda_pass_cases import ALWAYS, ANGLES, ATTENTION, BY_LENGTH, GROUPS, LENGTHS, TURNED, WIDTH
from cuda_pass_cases import HEADS as ALL_HEADS
from pass_cases import STORED, product

TURN = "turned = Transpose <perm = [1, 0]> (w) y = MatMul (x, turned) }"


def given(kind: str, name: str, count: int, *shape: int) -> str:
    """Return a weight: codes below a count, or numbers near 1 that are divided by it."""

    def number(i: int) -> float:
        return (0.5 + i * 37 % 19 / 20) / count if kind == "float" else i * 37 % count

    size = 1
    for n in shape:
        size *= n
    values = ", ".join(str(number(i)) for i in range(size))
    return f"{kind}[{','.join(map(str, shape))}] {name} = {{{values}}}"


def fp8(block: int) -> str:
    weights = [given("float8e4m3fn", "c", 100, 4, 32), given("float", "s", 64, 4, -(-32 // block))]
    return (
        f"(float16[B,32] x) => (float16[B,4] y) <{', '.join(weights)}> {{ wide = DequantizeLinear"
        f" <axis = 1, block_size = {block}> (c, s) w = Cast <to = 10> (wide) {TURN}"
    )


def experts(activation: str, inner: int = 64, bits: int = 8) -> str:
    """Return one route through two experts whose gates lie before their ups."""
    sizes = {"a": (2, 2 * inner, 64), "d": (2, 64, inner)}
    weights, nodes = [], ""
    for name, shape in sizes.items():
        blocks = shape[0] * shape[1] * shape[2] // inner
        weights += [
            given(f"uint{bits}", f"{name}c", 2**bits, blocks, inner),
            given("float", f"{name}s", 1024, blocks),
        ]
        nodes += (
            f"{name}n = Constant <value_ints = [{blocks}]> ()"
            f" {name}z8 = ConstantOfShape <value = uint8[1] {{{2 ** (bits - 1)}}}> ({name}n)"
            f" {name}z = Cast <to = {2 if bits == 8 else 21}> ({name}z8)"
            f" {name}f = DequantizeLinear <axis = 0> ({name}c, {name}s, {name}z)"
            f" {name}t = Constant <value_ints = [{', '.join(map(str, shape))}]> ()"
            f" {name}w = Reshape ({name}f, {name}t) "
        )
    return f"""(float[B,T,64] x, float[B,T,1] share, float[B,T,2] logits) => (float[B,T,64] y)
        <{", ".join(weights)}> {{ {nodes}
        one = Constant <value_ints = [1]> () value, chosen = TopK (logits, one)
        none = Constant <value_ints = [0]> ()
        half = Constant <value_ints = [{inner}]> () all = Constant <value_ints = [{2 * inner}]> ()
        g = Slice (aw, none, half, one, one) u = Slice (aw, half, all, one, one)
        y = lmcast.moe_experts <activation = "{activation}", alpha = 1.7, limit = 1.5,
            scale_input = 0> (x, share, chosen, g, u, dw) }}"""


def gated(kind: str = "float", block: int = 16, of_up: int = 16) -> str:
    """Return a gate and an up of 4 bits with zeros: the codes of both, then scales, then zeros.

    block, of_up: of each.
    """
    sizes = {"g": block, "u": of_up}
    parts = [given("uint8", f"{n}c", 256, 6, 32 // b, b // 2) for n, b in sizes.items()]
    parts += [given("float", f"{n}s", 64, 6 * (32 // b)) for n, b in sizes.items()]
    parts += [given("uint8", f"{n}z", 256, 6, 1) for n in sizes]
    cast = kind == "float16"  # the kernel multiplies in fp32, as its scales are
    nodes = "".join(
        f" {n}{'0' * cast} = com.microsoft.MatMulNBits <K = 32, N = 6, bits = 4, block_size = {b}>"
        f" (w, {n}c, {n}s, {n}z) " + f"{n} = Cast <to = 10> ({n}0)" * cast
        for n, b in sizes.items()
    )
    wide = "Cast <to = 1>" if cast else "Identity"
    return (
        f"({kind}[B,T,32] x) => ({kind}[B,T,6] y) <{', '.join(parts)}> {{ w = {wide} (x) {nodes}"
        " a = Relu (g) y = Mul (a, u) }"
    )


FP8_GATED = (
    "(float16[B,T,32] x) => (float16[B,T,6] y) <{}> {{"
    " g = com.microsoft.MatMulBlockQuantizedFp8Weight <block_size = 16> (x, gc, gs)"
    " u = com.microsoft.MatMulBlockQuantizedFp8Weight <block_size = 16> (x, uc, us)"
    " a = Relu (g) y = Mul (a, u) }}"
).format(
    ", ".join(
        [given("float8e4m3fn", f"{n}c", 100, 6, 32) for n in "gu"]
        + [given("float", f"{n}s", 64, 6, 2) for n in "gu"]
    )
)
HEADS = {"q": (2 * WIDTH, "a"), "k": (WIDTH, "b"), "v": (WIDTH, "c")}  # rows, what is attended with
TURNS = (
    ANGLES.replace(f"num_heads = {GROUPS}", "num_heads = 1")
    .replace(f"num_heads = {ALL_HEADS}", "num_heads = 2")
    .replace("(q,", "(q0,").replace("(k,", "(k0,")
)  # fmt: skip


def heads(
    more: str | None = ALWAYS, order: str = "qkv", lifted: bool = False, plain: bool = False
) -> str:
    """Return an attention to products with weights of 4 bits.

    more: how its angles are scaled, None for no rotation. order: of the weights in their file.
    lifted: with scales that are computed, and something added to the numbers of each block.
    plain: with weights in fp32 instead.
    """
    sizes = {name: HEADS[name][0] for name in order}
    own = [given("uint8", f"{n}c", 256, rows, 2, 8) for n, rows in sizes.items()]
    own += [given("float", f"{n}{'h' * lifted}s", 64, rows * 2) for n, rows in sizes.items()]
    if plain:
        own = [given("float", f"{n}c", 16, rows, 32) for n, rows in sizes.items()]
    names = {n: f"{n}0" if more and n != "v" else HEADS[n][1] for n in "qkv"}
    nodes = ""
    if lifted:
        own += [given("float", f"{n}m", 16, rows, 2) for n, rows in sizes.items()]
        nodes = (
            "parts = Constant <value_ints = [0, 0, 2, 16]> () inner = Constant"
            " <value_ints = [-1]> () blocks = Reshape (x, parts)"
            " sums = ReduceSum <keepdims = 0> (blocks, inner) "
        )
    for n, name in names.items():
        if plain:
            nodes += f"{name} = com.microsoft.FusedMatMul <transB = 1> (x, {n}c) "
            continue
        nodes += (
            f"{n}s = Neg ({n}hs) {n}l = Abs ({n}m) "
            * lifted
            + f" {name}{'p' * lifted} = com.microsoft.MatMulNBits <K = 32, N = {HEADS[n][0]},"
            f" bits = 4, block_size = 16> (x, {n}c, {n}s)"
            + f" {n}o = com.microsoft.FusedMatMul <transB = 1> (sums, {n}l)"
            f" {name} = Add ({name}p, {n}o)" * lifted
        )
    turns = TURNS.format(more=more, odd=0) if more else ""
    cache = f"float[B,1,C,{WIDTH}]"
    attended = ATTENTION.format(heads=2, groups=1, given="a, b, c")
    return (
        f"(int64[B,T] input_ids, int64[B] cache_lengths, int64[B] token_counts, {cache} key,"
        f" {cache} value, float[B,T,32] x) => (float[B,T,{2 * WIDTH}] y) <{', '.join(own)}>"
        f" {{ {LENGTHS} {nodes} {turns} {attended} }}"
    )


CACHES = (
    "(int64[B,T] input_ids, float[B,T,4,16] q, float[B,T,2,16] k, float[B,T,2,16] v,"
    " float8e4m3fn[B,2,C,16] key, float8e4m3fn[B,2,C,16] value, int64[B] cache_lengths,"
    " int64[B] token_counts, float ks, float vs) => (float[B,T,4,16] y) {"
    " y, key1, value1 = lmcast.cached_attention <scale = 0.3, softcap = 0.0>"
    " (q, k, v, key, value, cache_lengths, token_counts, , ks, vs) }"
)

HELD = [*[*STORED, "Slice"] * 2, "TopK"]
LEFT = [*HELD, "QMoE", "Equal", "Where", *["Unsqueeze", "ReduceSum", "CastLike", "Reshape"] * 2]

LIFTED = ["Reshape", "ReduceSum", *["Neg", "Abs"] * 3, "Concat", "Concat"]

CASES: dict[str, tuple[str, str, int, list[str]]] = {
    "exact_products": (
        "exact_products",
        "(float[B,32] x) => (float[B,1] y) <uint8[1,1,16] c = {"
        f"{', '.join(str(i * 37 % 256) for i in range(16))}}}, float[1] s = {{0.5}}> {{"
        " y = com.microsoft.MatMulNBits"
        " <K = 32, N = 1, bits = 4, block_size = 32, accuracy_level = 4> (x, c, s) }",
        1, ["MatMulNBits"],
    ),
    "nbits_matmul_exact": (
        "nbits_matmul_exact", product(), 1, [*STORED, "Identity", "Transpose", "MatMulNBits"],
    ),
    "nbits_matmul_exact, not in blocks that have no kernel": (
        "nbits_matmul_exact", product(block=8), 0, [*STORED, "Identity", "Transpose", "MatMul"],
    ),
    "block_products": (
        "block_products", fp8(16), 1,
        ["DequantizeLinear", "Transpose", "MatMulBlockQuantizedFp8Weight"],
    ),
    "block_products, of one block a row": (
        "block_products", fp8(32), 1,
        ["DequantizeLinear", "Transpose", "MatMulBlockQuantizedFp8Weight"],
    ),
    "block_products, not in fp32": (
        "block_products", fp8(16).replace("float16", "float").replace("<to = 10>", "<to = 1>"),
        0, ["DequantizeLinear", "Transpose", "MatMul"],
    ),
    "quantized_experts": ("quantized_experts", experts("silu"), 1, LEFT),
    "quantized_experts, clipped": ("quantized_experts", experts("clipped_swish"), 1, LEFT),
    "quantized_experts, of another activation": (
        "quantized_experts", experts("gelu"), 0, [*HELD, "moe_experts"],
    ),
    "quantized_experts, of widths without a kernel": (
        "quantized_experts", experts("silu", inner=32), 0, [*HELD, "moe_experts"],
    ),
    "packed_attention": (
        "packed_attention", heads(), 1, ["GroupQueryAttention", "MatMulNBits", "Identity", *TURNED],
    ),
    "packed_attention, without a rotation": (
        "packed_attention", heads(None), 1, ["GroupQueryAttention", "MatMulNBits"],
    ),
    "packed_attention, of plain weights": (
        "packed_attention", heads(plain=True), 1,
        ["GroupQueryAttention", "FusedMatMul", "Identity", *TURNED],
    ),
    "packed_attention, of plain weights that lie apart": (
        "packed_attention", heads(order="kqv", plain=True), 0,
        ["GroupQueryAttention", *["FusedMatMul"] * 3, *["RotaryEmbedding"] * 2, "Identity",
         *TURNED],
    ),
    "packed_attention, by the length of a row": (
        "packed_attention", heads(BY_LENGTH), 0,
        ["GroupQueryAttention", *["MatMulNBits"] * 3, *["RotaryEmbedding"] * 2, "Mul", *TURNED],
    ),
    "packed_attention, apart": (
        "packed_attention", heads(order="kqv"), 0,
        ["GroupQueryAttention", *["MatMulNBits"] * 3, *["RotaryEmbedding"] * 2, "Identity",
         *TURNED],
    ),
    "packed_attention, of ggml's blocks": (
        "packed_attention", heads(lifted=True), 1,
        ["GroupQueryAttention", "MatMulNBits", "FusedMatMul", "Add", "Identity", *TURNED, *LIFTED],
    ),
    "packed_attention, of ggml's blocks, by the length of a row": (
        "packed_attention", heads(BY_LENGTH, lifted=True), 0,
        ["GroupQueryAttention", *["MatMulNBits", "FusedMatMul", "Add"] * 3,
         *["RotaryEmbedding"] * 2, "Mul", *TURNED, *LIFTED[:-2]],
    ),
    "packed_products, not of ggml's blocks": (
        "packed_products", heads(None, lifted=True), 0,
        ["GroupQueryAttention", *["MatMulNBits", "FusedMatMul", "Add"] * 3, *LIFTED[:-2]],
    ),
    "packed_products, of codes": (
        "packed_products", gated(), 1, ["Identity", "MatMulNBits", "gated_activation"],
    ),
    "packed_products, of codes, cast": (
        "packed_products", gated("float16"), 1, ["MatMulNBits", "gated_activation"],
    ),
    "packed_products, of codes in blocks of two sizes": (
        "packed_products", gated(of_up=32), 0, ["Identity", *["MatMulNBits"] * 2, "Mul", "Relu"],
    ),
    "packed_products, of FP8": (
        "packed_products", FP8_GATED, 1, ["MatMulBlockQuantizedFp8Weight", "gated_activation"],
    ),
    "group_query_attention_fp8": ("group_query_attention_fp8", CACHES, 1, GQA),
}  # fmt: skip
