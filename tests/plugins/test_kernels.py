"""The Triton kernels beyond the operators' cases: sizes, layouts, and what their benchmark says."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import triton
from torch import Tensor
from triton import language as tl

from lmcast.plugins.errors import InputError
from lmcast.plugins.experts.gated_activation import gated_activation
from lmcast.plugins.experts.moe_experts import moe_experts
from lmcast.plugins.experts.moe_route import moe_route
from lmcast.plugins.latent import mla_attention as whole
from lmcast.plugins.latent import sparse_attention as sparse
from lmcast.plugins.latent import sparse_index as index
from lmcast.plugins.latent.sparse_index_triton import ordered
from lmcast.plugins.linear.causal_conv import causal_conv
from lmcast.plugins.linear.linear_attention import linear_attention
from lmcast.plugins.plugin import Plugin

BENCHMARK = Path(__file__).parents[1] / "benchmarks/triton_kernels.py"
LATENT = {p.name: p for p in (whole.mla_attention, sparse.sparse_attention, index.sparse_index)}
EACH = pytest.mark.parametrize(
    "plugin",
    [moe_route, moe_experts, *LATENT.values(), linear_attention, causal_conv, gated_activation],
    ids=lambda p: p.name,
)


def experts(
    places: int, top: int, width: int, inner: int, chosen: Tensor, biased: bool = False
) -> list:
    """Return arguments like those of the operator's cases, for chosen experts N,R."""
    count = int(chosen.max()) + 2  # the last has nothing to do
    shapes = [(inner, width), (inner, width), (width, inner)]
    stacks = [torch.randn(count, *shape) / shape[1] ** 0.5 for shape in shapes]
    biases = [torch.randn(count, shape[0]) if biased else None for shape in shapes]
    x, weights = torch.randn(places, width), torch.rand(places, top)
    return [x, weights, chosen, *stacks, *biases, "silu", 1.0, 1.0, False]


def check(args: list, atol: float = 5e-6) -> None:
    got = moe_experts.kernels["triton"]()(*args)
    torch.testing.assert_close(got, moe_experts.eager(*args), atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_more_routes_than_one_tile_and_one_block_of_the_sort(dtype: torch.dtype):
    """An expert of several tiles, one of a part, one of none; sizes past one block of each axis."""
    torch.manual_seed(1)
    chosen = torch.stack([torch.zeros(600), 1 + 2 * (torch.arange(600) > 570)], 1).long()
    args = experts(600, 2, 40, 136, chosen, biased=True)
    args = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args]
    args[1] = args[1].float()
    # Sums of up to 136 products, and of a bias; in fp16 2 epsilons of values up to 8.
    check(args, 1e-5 if dtype == torch.float32 else 1.6e-2)


def test_wide_outputs_are_summed_in_several_blocks():
    torch.manual_seed(2)
    check(experts(2, 2, 1100, 8, torch.tensor([[0, 1], [2, 1]])))


def test_weights_are_read_where_they_lie():
    """gpt-oss: turned, with gate and up in turn; x is every second token."""
    torch.manual_seed(3)
    args = experts(5, 2, 40, 36, torch.rand(5, 4).argsort(-1)[:, :2])
    count = len(args[3])
    both = torch.randn(count, 40, 72) / 6
    args[0] = torch.randn(10, 40)[::2]
    args[3:6] = [both.mT[:, ::2], both.mT[:, 1::2], (torch.randn(count, 36, 40) / 6).mT]
    check(args)


def test_no_places():
    args = experts(3, 2, 16, 8, torch.tensor([[0, 1]] * 3))
    args[:3] = [a[:0] for a in args[:3]]
    check(args)
    weights, chosen = moe_route.kernels["triton"]()(
        torch.empty(0, 2, 6), None, 2, "softmax", 1, 1, 0.0, 1.0
    )
    assert weights.shape == chosen.shape == (0, 2, 2)


def test_equal_scores_go_to_the_lowest_expert():
    launch = moe_route.kernels["triton"]()
    _, chosen = launch(torch.zeros(2, 7), None, 3, "softmax", 1, 1, 0.0, 1.0)
    assert chosen.tolist() == [[0, 1, 2]] * 2
    _, chosen = launch(torch.zeros(1, 12), None, 4, "sigmoid", 4, 2, 0.0, 1.0)
    assert chosen.tolist() == [[0, 1, 2, 3]]


def test_no_expert_is_chosen_twice_where_all_are_wanted_less_than_nothing():
    launch = moe_route.kernels["triton"]()
    args = (torch.arange(5.0)[None], torch.full((5,), -9.0), 5, "sigmoid", 1, 1, 0.0, 1.0)
    assert launch(*args)[1].tolist() == [[4, 3, 2, 1, 0]]


def test_not_a_number_is_seen_in_the_weights():
    logits = torch.zeros(1, 6)
    logits[0, 4] = float("nan")
    weights, chosen = moe_route.kernels["triton"]()(logits, None, 2, "sigmoid", 1, 1, -1.0, 1.0)
    assert chosen.tolist() == [[4, 0]]
    assert weights.isnan().tolist() == [[True, False]]


def check_cache(plugin: Plugin, args: tuple) -> Tensor:
    """Compare output and cache where rows that no token sees are NaN; return the output.

    Eager multiplies those by 0, and so gets them as they come.
    """
    at = [a.name for a in plugin.schema.arguments].index("cache_lengths")
    past, lengths, tokens = args[at - 1], args[at], args[0].shape[1]
    unseen = torch.arange(past.shape[1]) >= lengths[:, None] + tokens
    want, present = plugin.eager(*args)
    cache = past.masked_fill(unseen[..., None], float("nan"))
    got, same = plugin.kernels["triton"]()(*args[: at - 1], cache, *args[at:])
    assert same is cache
    assert cache[unseen].isnan().all()
    assert torch.equal(cache[~unseen], present[~unseen])
    atol = plugin.close[torch.float32].atol
    torch.testing.assert_close(got, want, atol=atol, rtol=0)
    return got


# Lengths, tokens, capacity, then H, N, R, L, V and how many are chosen.
ATTENTION = {
    "several splits": ([299], 1, 300, (3, 8, 8, 24, 8), 200),
    "much room": ([3, 150], 1, 2000, (2, 8, 8, 16, 8), 130),
    "tokens across tiles": ([5, 70, 0], 3, 80, (19, 8, 4, 16, 8), 20),
    "tokens across splits": ([62, 126, 40], 4, 200, (5, 8, 16, 40, 24), 199),
    "all chosen": ([60, 3], 2, 130, (17, 16, 8, 32, 12), 130),
    "many places": ([0], 70, 72, (2, 16, 8, 24, 70), 9),
}


@pytest.mark.parametrize("of", ATTENTION)
@pytest.mark.parametrize("kind", ["mla_attention", "sparse_attention"])
def test_attention_to_latents(kind: str, of: str):
    torch.manual_seed(4)
    lengths, tokens, room, sizes, kept = ATTENTION[of]
    given = (lengths, [tokens] * len(lengths), room, sizes)
    args = whole.case(*given) if kind == "mla_attention" else sparse.case(*given, kept)
    check_cache(LATENT[kind], args)


def test_a_row_without_room_is_written_nowhere():
    query, rotated, latent, past, _, *rest = whole.case([0, 0], [2, 2], 6, (2, 8, 4, 16, 8))
    held = past.clone()
    lengths = torch.tensor([5, 2])
    whole.mla_attention.kernels["triton"]()(query, rotated, latent, past, lengths, *rest)
    assert torch.equal(past[0, 5], latent[0, 0]) and torch.equal(past[0, :5], held[0, :5])
    assert torch.equal(past[1, 2:4], latent[1]) and torch.equal(past[1, :2], held[1, :2])


@pytest.mark.parametrize("plugin", LATENT.values(), ids=lambda p: p.name)
def test_a_cache_that_cannot_be_updated_in_place_is_refused(plugin: Plugin):
    args = list(plugin.cases()[1])
    at = [a.name for a in plugin.schema.arguments].index("cache_lengths") - 1
    args[at] = args[at].mT.contiguous().mT
    with pytest.raises(InputError, match=r"strides .* accepted: contiguous"):
        plugin.kernels["triton"]()(*args)


def scored(scores: Tensor, tokens: int, room: int, top_k: int) -> tuple:
    """Return arguments of sparse_index with exactly these scores B,S, the same for each token:
    k = relu(k) - relu(-k)."""
    batch, length = scores.shape
    keys = scores[..., None]
    past = torch.zeros(batch, room, 1)
    past[:, : length - tokens] = keys[:, :-tokens]
    both = torch.tensor([1.0, -1.0]).expand(batch, tokens, 2)
    lengths = torch.full((batch,), length - tokens)
    counts = torch.full((batch,), tokens)
    return both[..., None], both, keys[:, -tokens:], past, lengths, counts, top_k


def scores_of(kind: str, count: int) -> Tensor:
    random = torch.randn(2, count)
    return {
        "any": random,
        "equal": torch.full((2, count), -1.5),
        "often equal": random.round(),
        "close": 1 + random.round() * 2**-22,  # different in the last digits alone
        "large": random.sign() * 2.0 ** (100 * random).clamp(-126, 126),
    }[kind]


# How many slots are seen, the last of so many tokens; capacity, how many are chosen, their scores.
CHOICES = [
    *((300, 3, 400, 100, kind) for kind in ("any", "equal", "often equal", "close", "large")),
    (300, 3, 400, 299, "any"),  # as many as one token sees, and more than another
    (60, 20, 60, 60, "any"),  # all there are
    (4200, 1, 4210, 700, "often equal"),  # more than a block of the search
]


@pytest.mark.parametrize(("count", "tokens", "room", "top_k", "kind"), CHOICES)
def test_the_best_scores_are_chosen(count: int, tokens: int, room: int, top_k: int, kind: str):
    torch.manual_seed(5)
    chosen = check_cache(index.sparse_index, scored(scores_of(kind, count), tokens, room, top_k))
    if kind == "equal":
        assert torch.equal(chosen, torch.arange(top_k).expand_as(chosen))


def test_rows_of_different_lengths_choose_for_themselves():
    torch.manual_seed(6)
    args = index.case([3, 90, 40], [3, 3, 3], 140, (17, 20), 30)
    check_cache(index.sparse_index, args)


@triton.jit
def doubled(x, out):
    tl.store(out, tl.load(x) * 2)


def test_an_overflow_of_integers_is_found():
    """Of kernels in these tests, whose sizes and places are products of others."""
    out = torch.empty(1, dtype=torch.int32)
    doubled[(1,)](torch.tensor([2**30 - 1], dtype=torch.int32), out)
    assert out.item() == 2**31 - 2
    with pytest.raises(triton.runtime.errors.InterpreterError, match="mul of int32: 2147483648"):
        doubled[(1,)](torch.tensor([2**30], dtype=torch.int32), out)


@triton.jit
def order(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(out + at, ordered(tl.load(x + at)))


def test_scores_are_in_order_as_integers():
    """As torch sorts: 0.0 and -0.0 are equal, and so are all that are not numbers, the largest."""
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([-inf, -2.5, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38, inf, nan, -nan, 2.5, 1e9])
    x = torch.cat([x, torch.tensor([-1.0, -3e38, 7.0])])
    out = torch.empty(16, dtype=torch.int32)
    order[(1,)](x, out, 16)
    assert torch.equal(out.sort(stable=True).indices, x.sort(stable=True).indices)
    assert out[3] == out[4] and out[9] == out[10]


@EACH
def test_without_triton_the_extra_is_named(plugin: Plugin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(InputError, match=rf"{plugin.name}: .* 'lmcast\[triton\]'"):
        plugin.kernels["triton"]()


@EACH
def test_other_dtypes_are_refused(plugin: Plugin):
    args = list(plugin.cases()[0])
    args[0] = args[0].double()
    with pytest.raises(InputError, match="float64"):
        plugin.kernels["triton"]()(*args)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device: it would measure")
def test_the_benchmark_says_that_it_needs_a_gpu():
    done = subprocess.run([sys.executable, BENCHMARK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "triton_kernels.py: there is no CUDA device here; nothing was measured\n"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # of the module beside it
    spec = importlib.util.spec_from_file_location("kernels_benchmark", BENCHMARK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_counts_what_it_says(bench: ModuleType):
    """Its own path without the GPU: small sizes, the interpreter, a clock that always says 1 ms."""
    from kernel_works import Latent, Model, attention_work, experts_work, index_work, route_work

    model = Model("small", 6, 2, 16, 24, "clipped_swish", biased=True)

    def ways(work: object) -> dict:
        return {"eager": bench.Way(bench.PLAIN[work.operator][1], graph=False)}

    def time(run: Callable[[], None], graph: bool) -> float:
        assert not graph
        run()
        return 3e-3

    works = [route_work(model, 4, "cpu"), experts_work(model, 1, "cpu")]
    one, three = bench.measure(iter(works), ways, time, (1e6, 1e9))
    # 4 x 6 logits of 2 bytes, 4 x 2 picks of 12: 144 bytes at 1 MB/s, in 3 ms.
    assert one == [
        "moe_route",
        "small",
        "4",
        "eager",
        "launched",
        "3000.0",
        "144.0",
        "4.8% of bytes",
    ]
    # Two experts of 3 x 16 x 24 weights and 2 x 24 + 16 biases, x and out of 16: all of 2 bytes;
    # shares and choices of 12. Three calls, each with its own two experts.
    moved = 2 * (2 * (3 * 16 * 24 + 64) + 2 * 16) + 2 * 12
    assert three[5:7] == ["1000.0", f"{moved:.1f}"]
    wrong = bench.Way(lambda *args: moe_experts.eager(*args) * 1.1, graph=False)
    with pytest.raises(RuntimeError, match="moe_experts small 1: wrong is off"):
        bench.measure(iter(works[1:]), lambda _: {"wrong": wrong}, time, (1e6, 1e9))
    full = Latent("full", 4, 8, 12, rank=16, turned_width=8, context=64)
    some = Latent("some", 4, 8, 12, 2, 16, chosen=10, rank=16, turned_width=8, context=64)
    works = [attention_work(latent, 3, "cpu", 0) for latent in (full, some)]
    works.append(index_work(some, 3, "cpu", 10500))
    assert [len(work.calls) for work in works] == [1, 1, 2]
    rows = bench.measure(iter(works), ways, time, (1e6, 1e12))
    # 3 x 66 or 12 rows of 24; 3 x 4 heads of 8 + 8 + 12, 4 x 16 x 20 of both matrices: of 2 bytes;
    # 3 x 10 positions of 8. The index: 3 x 66 keys and 2 queries of 16, 2 weights and 10 positions.
    rest = 3 * 4 * 28 + 4 * 16 * 20
    moved = [2 * (3 * 66 * 24 + rest), 2 * (3 * 12 * 24 + rest) + 240]
    moved.append(3 * (2 * 68 * 16 + 4 * 2 + 8 * 10))
    assert [row[6] for row in rows] == [f"{count:.1f}" for count in moved]
    flops = [2 * 12 * (n * (2 * 16 + 8) + 16 * 20) for n in (64, 10)] + [2 * 3 * 2 * 16 * 64]
    assert [work.flops for work in works] == flops


@pytest.mark.parametrize("name", ["mla_attention", "sparse_attention"])
def test_the_benchmark_compares_with_the_operator(bench: ModuleType, name: str):
    for args in LATENT[name].cases():
        want, _ = LATENT[name].eager(*args)
        got, _ = bench.PLAIN[name][1](*args)
        torch.testing.assert_close(got, want, atol=LATENT[name].close[got.dtype].atol, rtol=0)
