"""Graphs for merged_products: products of one input, and where their weights lie."""

MERGED, APART = ["MatMulNBits", "Split", "Relu"], ["MatMulNBits", "MatMulNBits", "Relu"]


def products(
    order: str = "qk", files: str = "qc kc qs ks qz kz", level: int = 0, other: str = "x"
) -> str:
    """Return a graph of two products, q of 4 rows and k of 2.

    order: of the two in the graph. files: of codes, scales and zero points in the file. level: of
    k's accuracy; other: what k multiplies.
    """
    given = {}
    for name, rows in (("q", 4), ("k", 2)):
        codes = ", ".join(str((7 * i + 50 * rows) % 256) for i in range(32 * rows))
        scales = ", ".join(f"{0.0005 + i % 5 / 2000:.4f}" for i in range(2 * rows))
        zeros = ", ".join(str(120 + i + rows) for i in range(2 * rows))
        given[f"{name}c"] = f"uint8[{rows},2,16] {name}c = {{{codes}}}"
        given[f"{name}s"] = f"float[{2 * rows}] {name}s = {{{scales}}}"
        given[f"{name}z"] = f"uint8[{rows},2] {name}z = {{{zeros}}}"
    stored = ", ".join(given[name] for name in files.split())
    last = {name: f", {name}z" if f"{name}z" in files else "" for name in "qk"}
    more = "K = 32, bits = 8, block_size = 16"
    nodes = {
        "q": f"q = com.microsoft.MatMulNBits <N = 4, accuracy_level = 0, {more}>"
        f" (x, qc, qs{last['q']})",
        "k": f"k = com.microsoft.MatMulNBits <N = 2, accuracy_level = {level}, {more}>"
        f" ({other}, kc, ks{last['k']})",
    }
    return (
        f"(float[B,32] x, float[B,32] z) => (float[B,4] q, float[B,2] k, float[B,2] r) <{stored}>"
        f" {{ {' '.join(nodes[name] for name in order)} r = Relu (k) }}"
    )


PRODUCTS: dict[str, tuple[str, str, int, list[str]]] = {
    "merged_products": ("merged_products", products(), 1, MERGED),
    "merged_products, no zero points": (
        "merged_products", products(files="qc kc qs ks"), 1, MERGED,
    ),
    "merged_products, the second of the file first in the graph": (
        "merged_products", products(order="kq"), 1, MERGED,
    ),
    "merged_products, not where something lies between": (
        "merged_products", products(files="qc kc qs qz ks kz"), 0, APART,
    ),
    "merged_products, not in another order": (
        "merged_products", products(files="qc kc ks qs qz kz"), 0, APART,
    ),
    "merged_products, not where one has zero points": (
        "merged_products", products(files="qc kc qs ks qz"), 0, APART,
    ),
    "merged_products, not where one rounds its inputs": (
        "merged_products", products(level=4), 0, APART,
    ),
    "merged_products, not of two inputs": (
        "merged_products", products(other="z"), 0, APART,
    ),
}  # fmt: skip
