"""What attention keeps: the kinds agree with each other, and with a mask written out."""

import pytest
import torch
from tiny import defined, read
from torch import Tensor

from lmcast.graphs.blocks.attention import Attention
from lmcast.graphs.blocks.keeps import All, Chunks, Keeps, Lend, Ring, windowed
from lmcast.graphs.blocks.kv_cache_format import Fp8Cache
from lmcast.graphs.blocks.kv_sharing import BorrowingAttention
from lmcast.graphs.blocks.projections import Projections
from lmcast.graphs.blocks.rope import LogTemperature, Rope
from lmcast.graphs.blocks.step import Mixer, Step, empty
from lmcast.graphs.config.rope_parameters import RopeParameters
from lmcast.plugins.attention.attend import attend

P = Projections(dim=12, heads=4, kv_heads=2, head_dim=8, value_dim=6)
TOKENS = 11
CALLS = (1, 6, 1, 3)  # tokens of each
CLOSE = 2.4e-6  # as of the operators, 20 fp32 epsilons: atol, and rtol for sums above 1


def made(keeps: Keeps) -> Attention:
    """Return attention with everything that acts on scores, of the same weights every time."""
    torch.manual_seed(0)
    mixer = Attention(P, rope=None, keeps=keeps, softcap=2.0, sinks=True,
                      temperature=LogTemperature(3))  # fmt: skip
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    return mixer


def inputs() -> Tensor:
    return torch.randn(2, TOKENS, P.dim, generator=torch.Generator().manual_seed(1))


def stepped(mixer: Mixer) -> Tensor:
    """Return what a mixer makes of the inputs in several calls."""
    past, done, out = empty(mixer.states, 2, TOKENS, torch.float32), 0, []
    for x in inputs().split(CALLS, 1):
        lengths = torch.full((2,), done)
        y, past = mixer(x, Step(lengths, torch.full((2,), x.shape[1]), x.shape[1]), past)
        out.append(y)
        done += x.shape[1]
    return torch.cat(out, 1)


def written_out(mixer: Attention, oldest: Tensor) -> Tensor:
    """Return the same without a cache: every token sees from its oldest position up to itself."""
    x, position = inputs(), torch.arange(TOKENS)
    q, k, v = mixer.q(x), mixer.k(x), mixer.v(x)
    mask = (position <= position[:, None]) & (position >= oldest[:, None])
    factor = LogTemperature(3)(Step(torch.zeros(2, dtype=torch.int64), torch.ones(2), TOKENS))[0]
    y = attend(
        q.unflatten(-1, (4, 8)), k.unflatten(-1, (2, 8)).transpose(1, 2),
        v.unflatten(-1, (2, 6)).transpose(1, 2), mask.expand(2, -1, -1), mixer.sink, factor,
        mixer.scale, 2.0,
    )  # fmt: skip
    return mixer.o(y.flatten(-2))


POSITION = torch.arange(TOKENS)
KINDS: dict[str, tuple[Keeps, Tensor]] = {
    "all": (All(), torch.zeros(TOKENS)),
    "ring": (Ring(4), POSITION - 3),
    "chunks": (Chunks(4), POSITION - POSITION % 4),
    "lent": (Lend(All(), P), torch.zeros(TOKENS)),
    "lent ring": (Lend(Ring(4), P), POSITION - 3),
}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_see_what_the_kind_says(kind: str):
    keeps, oldest = KINDS[kind]
    mixer = made(keeps)
    torch.testing.assert_close(stepped(mixer), written_out(mixer, oldest), atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("keeps", [All(), Ring(4)], ids=str)
@torch.no_grad()
def test_a_borrower_attends_as_its_lender(keeps: All | Ring):
    """With the same queries and no temperature, cap or sinks: those are the lender's own."""
    rope = Rope(P.head_dim, RopeParameters(), 64)
    torch.manual_seed(0)
    lend = Lend(keeps, P)
    lender = Attention(P, rope=rope, keeps=lend)
    borrower = BorrowingAttention(P, rope=rope, loan=lend.loan)
    borrower.q, borrower.o = lender.q, lender.o
    step = Step(torch.zeros(2, dtype=torch.int64), torch.full((2,), TOKENS), TOKENS)
    past = empty(lender.states, 2, TOKENS, torch.float32)
    lent = lender(inputs(), step, past)[0]
    torch.testing.assert_close(borrower(inputs(), step, ())[0], lent, atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("keeps", [All(), Ring(4), Chunks(4)], ids=str)
def test_states_in_fp8(keeps: Keeps):
    mixer = Attention(P, rope=None, keeps=keeps)
    before = mixer.states
    mixer.hold(Fp8Cache())
    assert [s.dtype for s in mixer.states] == [torch.float8_e4m3fn] * 2
    assert [s.shape for s in mixer.states] == [s.shape for s in before]


def test_what_is_lent_is_not_held_in_fp8():
    mixer = Attention(P, rope=None, keeps=Lend(All(), P))
    before = mixer.states
    with pytest.raises(ValueError, match="lends keys and values holds them as they are computed"):
        mixer.hold(Fp8Cache())
    assert mixer.states == before and mixer.cache.dtype is None


def test_windowed():
    assert (windowed(None), windowed(0), windowed(7)) == (All(), All(), Ring(7))


@pytest.mark.parametrize(
    ("name", "context", "keeps"),
    [
        ("phi3/Phi-3-mini-4k", 32, {Ring(31)}),
        ("phi3/Phi-3-mini-4k", 31, {All()}),
        ("phi3/Phi-3.5-mini", 1025, {Ring(1024)}),  # beyond the context of the files
        ("phi3/Phi-3.5-mini", 512, {All()}),
        ("gemma2/plain", 9, {All(), Ring(8)}),
        ("gemma2/plain", 8, {All()}),
        ("llama4_text/plain", 9, {All(), Chunks(8)}),
        ("llama4_text/plain", 8, {All()}),
    ],
)
def test_a_window_that_no_row_leaves_is_none(name, context, keeps: set[Keeps], checkpoint):
    model = defined(*read(checkpoint(name))).model
    model.limit(context)
    assert {layer.mixer.keeps for layer in model.layers} == keeps
    shapes = {s.shape[2] for states in model.states() for s in states}
    assert shapes == {getattr(k, "window", getattr(k, "size", "C")) for k in keeps}


def test_heads_divide_among_keys():
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3 key heads"):
        Projections(dim=12, heads=4, kv_heads=3, head_dim=8)
