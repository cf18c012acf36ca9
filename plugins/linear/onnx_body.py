"""linear_attention in standard operators, in the chunked form.

Letters as there; C tokens of a chunk, n chunks. Within a chunk, tokens interact by matrix products
of queries and keys; with what came before the chunk, through the state. For the delta rule, the
updates within a chunk are a triangular system (arXiv 2406.06484).
"""

from dataclasses import dataclass

from lmcast.plugins.onnx_builder import Attribute, Builder, DataType, Value

CHUNK = 64  # tokens; a chunk's products then take as long as those with the matrix, for K of 128
CHANNEL_CHUNK = 16  # where decay is per channel, a chunk holds C,C,K numbers
EPS = 1e-6  # of the norms of queries and keys
NEVER = float("-inf")


@dataclass(frozen=True)
class Inputs:
    """The operator's inputs as B,T,H,X in fp32; tokens beyond token_counts neither decay nor
    update."""

    query: Value
    key: Value
    value: Value
    decay: Value  # X is 1 or K
    beta: Value | None  # X is 1

    @classmethod
    def of(
        cls,
        op: Builder,
        query: Value,
        key: Value,
        value: Value,
        past_state: Value,
        decay: Value,
        token_counts: Value,
        beta: Value | None,
        normalize: bool,
    ) -> "Inputs":
        """Expand queries and keys to the heads of values, each divided by its length where
        `normalize`."""
        batch, tokens, heads = op.size(query, 0), op.size(query, 1), op.size(past_state, 1)
        valid = op.range(tokens) < op.Unsqueeze(token_counts, [1])  # B,T
        valid = op.Unsqueeze(op.Unsqueeze(valid, [2]), [3])

        def split(x: Value) -> Value:
            return op.reshape(op.Cast(x, to=DataType.FLOAT), batch, tokens, heads, -1)

        def each(x: Value) -> Value:
            width = op.size(past_state, 2)
            groups = op.reshape(op.Cast(x, to=DataType.FLOAT), batch, tokens, -1, width)  # B,T,G,K
            if normalize:
                length = op.Sqrt(op.ReduceSum(groups * groups, [-1], keepdims=1) + EPS)
                groups = groups / length
            count = op.size(groups, 2)
            shape = op.dims(batch, tokens, count, heads / count, width)
            return op.reshape(op.Expand(op.Unsqueeze(groups, [3]), shape), batch, tokens, heads, -1)

        keys, strength = each(key), None
        if beta is None:
            keys = op.Where(valid, keys, 0.0)
        else:
            strength = op.Where(valid, split(beta), 0.0)
        return cls(each(query), keys, split(value), op.Where(valid, split(decay), 0.0), strength)


@dataclass(frozen=True)
class Places:
    """Masks between the tokens of a chunk, computed once ahead of the scan."""

    last: Value  # [1]: C - 1
    earlier: Value  # C,C: token j is before token i
    not_later: Value  # C,C
    same: Value  # C,C
    below: list[Value]  # C,C for blocks of 1, 2, 4 ...: i in an odd one, j in the one before it

    @classmethod
    def of(cls, op: Builder, chunk: Value, most: int) -> "Places":
        row = op.range(chunk)
        column = op.Unsqueeze(row, [1])

        def below(width: int) -> Value:
            block, block_column = op.Div(row, width), op.Div(column, width)
            return op.Equal(block, block_column - 1) & op.Equal(block_column % 2, 1)

        blocks = [below(1 << level) for level in range((most - 1).bit_length())]
        return cls(chunk - 1, row < column, row <= column, op.Equal(row, column), blocks)


@dataclass(frozen=True)
class Chunk:
    """The body of the scan over chunks; all inputs are B,H,C,X."""

    op: Builder
    channels: bool
    places: Places
    query: Value
    key: Value
    value: Value
    decay: Value
    beta: Value | None = None

    def pairs(self) -> tuple[Value, Value]:
        """Return the decay from token j to token i, 0 where j is later, B,H,C,C or B,H,C,C,K, and
        from each token to the end of the chunk, B,H,C,X.

        Each is a sum of its own: the difference of two long cumulative sums would lose small
        decays.
        """
        op, earlier, not_later = self.op, self.places.earlier, self.places.not_later
        decay = self.decay  # B,H,C,1 broadcasts over j
        if self.channels:
            decay = op.Unsqueeze(decay, [3])
            earlier, not_later = (op.Unsqueeze(x, [2]) for x in (earlier, not_later))
        between = op.CumSum(op.Where(earlier, decay, 0.0), 2)
        pair = op.Exp(op.Where(not_later, between, NEVER))
        end = op.Gather(between, self.places.last, axis=2)  # B,H,1,C or B,H,1,C,K
        behind = op.Squeeze(end, [2]) if self.channels else op.Transpose(end, perm=[0, 1, 3, 2])
        return pair, op.Exp(behind)

    def products(self, x: Value, pair: Value) -> Value:
        """Return products of rows i of x and of keys j, times the decay between them, B,H,C,C."""
        op = self.op
        if self.channels:
            decayed = op.Unsqueeze(self.key, [2]) * pair
            return op.ReduceSum(op.Unsqueeze(x, [3]) * decayed, [-1], keepdims=0)
        return (x @ op.Transpose(self.key, perm=[0, 1, 3, 2])) * pair

    def inverse(self, told: Value) -> Value:
        """Return the inverse of 1 + told, where told B,H,C,C is strictly lower triangular.

        Blocks of 1, 2, 4 ... along the diagonal are inverted; of two neighbours, the block below
        the diagonal is `- inverse told inverse`. Powers of told, which could be huge, are not used.
        """
        inverse = self.op.Cast(self.places.same, to=DataType.FLOAT)
        for below in self.places.below:
            part = self.op.Where(below, told, 0.0)
            inverse = inverse - inverse @ (part @ inverse)
        return inverse

    def step(self, state: Value) -> tuple[Value, Value]:
        """Return the state B,H,K,V after the chunk, and its output, B,H,C,V."""
        op = self.op
        pair, behind = self.pairs()
        run = op.CumSum(self.decay, 2)
        left = op.Exp(run)  # of the matrix after the tokens up to this one
        query_left = self.query * left
        total = op.Exp(op.Gather(run, self.places.last, axis=2))  # B,H,1,X
        new = self.value
        if self.beta is not None:
            key_beta = self.key * self.beta
            earlier = op.Cast(self.places.earlier, to=DataType.FLOAT)
            inverse = self.inverse(self.products(key_beta, pair) * earlier)
            known = (inverse @ (key_beta * left)) @ state
            new = inverse @ (self.value * self.beta) - known
        out = self.products(self.query, pair) @ new + query_left @ state
        keys = op.Transpose(self.key * behind, perm=[0, 1, 3, 2])  # B,H,K,C
        return state * op.Transpose(total, perm=[0, 1, 3, 2]) + keys @ new, out


def body(
    op: Builder,
    query: Value,
    key: Value,
    value: Value,
    past_state: Value,
    decay: Value,
    token_counts: Value,
    beta: Value | None,
    normalize: Attribute,
    channels: Attribute,
    scale: Attribute,
) -> tuple[Value, Value]:
    """Scan over chunks.

    The last state goes through a Max that changes nothing: where a runtime updates states in place,
    the scan would otherwise write intermediate states where the old one is still to be read.
    """
    given = Inputs.of(
        op, query, key, value, past_state, decay, token_counts, beta, bool(normalize.value)
    )
    most = CHANNEL_CHUNK if channels.value else CHUNK
    batch, tokens, heads = op.size(query, 0), op.size(query, 1), op.size(past_state, 1)
    chunk = op.Min(tokens, most)
    count = (tokens + chunk - 1) / chunk
    whole = count * chunk
    pads = op.dims(op.constant([0] * 5), whole - tokens, op.constant([0, 0]))
    places = Places.of(op, chunk, most)

    def apart(x: Value) -> Value:
        """B,T,H,X -> n,B,H,C,X; the rest of the last chunk is zeros."""
        chunks = op.reshape(op.Pad(x, pads), batch, count, chunk, heads, -1)
        return op.Transpose(chunks, perm=[1, 0, 3, 2, 4])

    def step(state: Value, *parts: Value) -> tuple[Value, Value]:
        return Chunk(op, bool(channels.value), places, *parts).step(state)

    parts = {"q": given.query * scale, "k": given.key, "v": given.value, "g": given.decay}
    if given.beta is not None:
        parts["b"] = given.beta
    scanned = {name: (apart(x), f"BHC{name.upper()}") for name, x in parts.items()}
    last, outs = op.scan(step, {"state": (past_state, "BHKV")}, scanned)
    flat = op.reshape(op.Transpose(outs, perm=[1, 0, 3, 2, 4]), batch, whole, -1)
    out = op.CastLike(op.slice(flat, 1, [0], tokens), value)
    return out, op.Max(last, NEVER)
