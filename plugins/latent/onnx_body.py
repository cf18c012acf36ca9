"""Attention over latents in standard operators, for the operators that attend to them.

Letters as in mla_attention; S rows of the cache that are looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value

Product = Callable[[Builder, Value, Value, int], Value]
NEVER = float("-inf")


def times_transposed(op: Builder, a: Value, b: Value, axes: int) -> Value:
    """Return `a @ b.mT`; both have this number of axes."""
    return a @ op.Transpose(b, perm=[*range(axes - 2), axes - 1, axes - 2])


@dataclass(frozen=True)
class Style:
    """How a body is written for a runtime.

    product: multiplies with a transposed matrix.
    wide: the operator may compute in another dtype than fp32; scores are then cast to fp32.
    by_length: attend to the rows that some token sees instead of the whole cache; they are copied.
    one_head: caches are B,1,C,W, as programs hold them that know caches of heads alone.
    """

    product: Product = times_transposed
    wide: bool = True
    by_length: bool = False
    one_head: bool = False

    def write(self, op: Builder, past: Value, until: Value, new: Value) -> tuple[Value, Value]:
        """Return the cache with `new` B,T,W in the rows `until` B,T,1, and the same as B,C,W.

        TensorScatter, in TensorRT, takes four axes only, and a state whose capacity is fixed.
        """
        row = op.Unsqueeze(op.range(op.size(new, 0)), [1, 2])
        if not self.one_head:
            present = op.ScatterND(past, op.Where(op.constant([True, False]), row, until), new)
            return present, present
        behind = op.Where(op.constant([False, False, True]), until, 0)
        places = op.Where(op.constant([True, False, False]), row, behind)  # B,T,3
        present = op.ScatterND(past, places, new)
        return present, op.Squeeze(present, [1])

    def capacity(self, op: Builder, past: Value) -> Value:
        """Return C of a cache, [1]."""
        return op.size(past, 2 if self.one_head else 1)

    def slots(self, op: Builder, past: Value, cache_lengths: Value, tokens: Value) -> Value:
        """Return how many rows of a cache are looked at, [1]."""
        if not self.by_length:
            return self.capacity(op, past)
        return op.ReduceMax(cache_lengths, keepdims=1) + tokens

    def seen(self, op: Builder, x: Value, slots: Value, axis: int) -> Value:
        """Return what belongs to these rows; `axis` of x is C."""
        return op.slice(x, axis, [0], slots) if self.by_length else x

    def widened(self, op: Builder, x: Value) -> Value:
        return op.Cast(x, to=DataType.FLOAT) if self.wide else x


PORTABLE = Style()


@dataclass(frozen=True)
class Heads:
    """What attends to latents: query B,T,H,N, rotated B,T,H,R, key_up H,N,L and value_up H,V,L."""

    op: Builder
    query: Value
    rotated: Value
    key_up: Value
    value_up: Value
    scale: Attribute
    style: Style = PORTABLE

    def sizes(self) -> tuple[Value, ...]:
        """Return B, T, H, N, R, L and V."""
        size = self.op.size
        shared = (size(self.query, axis) for axis in range(4))
        rank, value_width = size(self.key_up, 2), size(self.value_up, 1)
        return *shared, size(self.rotated, 3), rank, value_width

    def by_head(self) -> tuple[Value, Value]:
        """Return queries, and their rotated part, as B,H,T,N and B,H,T,R, scaled."""
        op = self.op
        scale = op.CastLike(self.scale, self.query)
        query, rotated = (op.Transpose(x, perm=[0, 2, 1, 3]) for x in (self.query, self.rotated))
        return query * scale, rotated * scale

    def softmax(self, score: Value, mask: Value) -> Value:
        """Return weights in the dtype of queries, 0 where the mask is false."""
        op = self.op
        allowed = op.Where(mask, self.style.widened(op, score), NEVER)
        weight = op.Softmax(allowed, axis=-1)
        return op.CastLike(weight, self.query) if self.style.wide else weight

    def absorbed(self, rows: Value, mask: Value) -> Value:
        """Attend to rows B,S,L+R where mask B,1,T,S is true -> B,T,H,V, in the absorbed form.

        Queries are multiplied with key_up, so that all heads attend to the same rows, which are not
        copied; the result, in latents, is multiplied with value_up.
        """
        op, (batch, tokens, heads, _, rotated_width, rank, _) = self.op, self.sizes()
        slots, row_width = op.size(rows, 1), rank + rotated_width
        flat = op.reshape(self.folded(), batch, -1, row_width)
        score = self.style.product(op, flat, rows, 3)  # B,HT,S
        weight = self.softmax(op.reshape(score, batch, heads, tokens, slots), mask)
        taken = op.reshape(weight, batch, -1, slots) @ rows
        return self.unfolded(op.reshape(taken, batch, heads, tokens, row_width), [0, 1, 3, 2])

    def folded(self) -> Value:
        """Return queries multiplied with key_up, and their rotated part, B,H,T,L+R."""
        query, rotated = self.by_head()
        return self.op.Concat(query @ self.key_up, rotated, axis=3)

    def unfolded(self, taken: Value, columns: list[int]) -> Value:
        """Return attended rows, which `columns` transposes to B,H,L+R,T, multiplied with value_up,
        B,T,H,V."""
        op, (*_, rank, _) = self.op, self.sizes()
        latent = op.Transpose(op.slice(taken, 3, [0], rank), perm=columns)
        return op.Transpose(self.value_up @ latent, perm=[0, 3, 1, 2])

    def expanded(self, rows: Value, mask: Value) -> Value:
        """Attend in the expanded form, with keys and values of every head (`attend` of
        mla_attention)."""
        op, (*_, rotated_width, rank, _) = self.op, self.sizes()

        def columns(start: Value | list[int], end: Value) -> Value:
            part = op.Transpose(op.slice(rows, 2, start, end), perm=[0, 2, 1])
            return op.Unsqueeze(part, [1])

        latents, shared = columns([0], rank), columns(rank, rank + rotated_width)
        query, rotated = self.by_head()
        score = query @ (self.key_up @ latents) + rotated @ shared
        values = self.value_up @ latents  # B,H,V,S
        out = self.style.product(op, self.softmax(score, mask), values, 4)
        return op.Transpose(out, perm=[0, 2, 1, 3])

    def absorbs(self, slots: Value) -> Value:
        """Return whether the absorbed form has fewer multiplications, a bool [].

        Of one head: absorbed T S (2 L + R) + T L (N + V), expanded S L (N + V) + T S (N + R + V). A
        decoding step has fewer in the absorbed form, a prompt in the expanded one.
        """
        _, tokens, _, width, rotated_width, rank, value_width = self.sizes()
        pairs, both = tokens * slots, width + value_width
        absorbed = pairs * (rank + rank + rotated_width) + tokens * (rank * both)
        expanded = slots * (rank * both) + pairs * (both + rotated_width)
        return self.op.Squeeze(absorbed < expanded)

    def attend(self, present: Value, slots: Value, mask: Value) -> Value:
        """Attend to the first rows of a cache B,C,L+R, `slots` [1] of them, in the cheaper form."""

        def rows() -> Value:
            return self.style.seen(self.op, present, slots, 1)

        self.by_head()  # written ahead of both branches, which share it
        (out,) = self.op.branch(
            self.absorbs(slots),
            lambda: self.absorbed(rows(), mask),
            lambda: self.expanded(rows(), mask),
        )
        return out


def last_seen(op: Builder, cache_lengths: Value, tokens: Value) -> Value:
    """Return the last row that each token sees, B,T,1: its own."""
    return op.Unsqueeze(op.Unsqueeze(cache_lengths, [1]) + op.range(tokens), [2])
