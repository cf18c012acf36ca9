"""Models with linear layers, a line each: prompts around a chunk, steps, saved states, padding."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tiny import case, gap, oracle, oracle_model, ours, prompt, read
from torch import Tensor

from lmcast.exporter import Engine, export, load
from lmcast.exporter.engine.inspect import inspect
from lmcast.graphs.blocks.decoder import Decoder


class Line(NamedTuple):
    """A case; the fp32 numbers that a sequence carries, and those that each token adds."""

    name: str
    carried: int
    each: int = 0
    targets: tuple[str, ...] = ("cpu", "onnx")
    # Hugging Face's own steps, where they are right: MiniMax's count positions from none.
    own_steps: bool = False
    # In one pass Hugging Face sums decays up by the chunk of 64 tokens, in fp32 whatever the dtype:
    # numbers near 100, whose differences are then what counts. Token by token it does not.
    chunks_in_fp32: bool = False


# Of a layer: heads * keys * values, and the inputs of all but one tap of its convolutions; keys and
# values of the layers with attention, or latents.
LINES = [
    Line("qwen3_next/Qwen3-Next-80B-A3B", 2 * (6 * 6 * 10 + 3 * (4 * 6 + 6 * 10)), 2 * 2 * 16,
         own_steps=True, chunks_in_fp32=True),
    Line("qwen3_5_text/Qwen3.5-27B (text)", 3 * (6 * 6 * 10 + 3 * (4 * 6 + 6 * 10)), 2 * 2 * 16,
         ("cpu",), own_steps=True, chunks_in_fp32=True),
    Line("kimi_linear/Kimi-Linear-48B-A3B", 3 * (3 * 12 * 12 + 3 * 3 * 3 * 12), 2 * (16 + 8),
         ("cpu",), own_steps=True),
    Line("minimax/gains, wide heads, blocks", 4 * 4 * 16 * 16, 2 * 2 * 16),
    Line("bamba/Bamba-9B", 2 * (8 * 12 * 8 + 3 * (64 + 2 * 12)), 2 * 2 * 2 * 8, ("cpu",)),
    Line("granitemoehybrid/granite-4.0-h-tiny", 3 * (8 * 12 * 8 + 3 * (64 + 2 * 12)), 2 * 2 * 8),
    Line("nemotron_h/Nemotron-Nano-9B-v2", 2 * (8 * 12 * 8 + 3 * (64 + 4 * 12)), 2 * 2 * 16,
         ("cpu",)),
    Line("nemotron_h/Nemotron-3-Super", 2 * (8 * 12 * 8 + 3 * (64 + 4 * 12)), 2 * 2 * 16),
]  # fmt: skip
# Without attention: nothing grows.
ALONE = [
    Line("qwen3_5_text/all linear, the epsilon of the files", LINES[1].carried // 3 * 2),
    Line("kimi_linear/linear alone, one tap", 3 * 3 * 20 * 20),  # one tap: no inputs are carried
    Line("minimax/all linear, six heads, tied", 3 * 6 * 8 * 8),
    Line("granitemoehybrid/no attention", 2 * (8 * 12 * 8 + 3 * (64 + 2 * 2 * 12))),
]
BUILT = pytest.mark.parametrize(
    ("line", "target"),
    [(line, target) for line in LINES for target in line.targets],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
CONTEXT = 1 << 20
# Around a chunk of 64 tokens, of 16 at Hugging Face in some; and into the third.
LENGTHS = (1, 63, 64, 65, 130)
IDS = prompt(3, 130, seed=2)  # none of which takes Hugging Face's fp32 near the cap of the bound


@pytest.fixture(scope="module")
def engine(checkpoint, tmp_path_factory: pytest.TempPathFactory):
    """Return a function from a line and a target to an engine, made once."""
    made: dict[tuple[str, str], Engine] = {}

    def get(line: Line, target: str = "cpu") -> Engine:
        if (line.name, target) not in made:
            folder = tmp_path_factory.mktemp("steps") / "engine"
            options = {"parity": False, "tokenizer": False, "context": CONTEXT}
            export(checkpoint(line.name), folder, target, **options)
            made[line.name, target] = load(folder, threads=1)
        return made[line.name, target]

    return get


@cache
def eager(directory: Path) -> Decoder:
    return ours(*read(directory))


@cache
@torch.no_grad()
def token_by_token(line: Line, directory: Path, tokens: int, dtype: torch.dtype) -> Tensor:
    """Return what Hugging Face makes of the first IDS in steps."""
    model, past, found = oracle_model(case(line.name), directory, dtype), None, []
    for ids in IDS[:, :tokens].split(1, 1):
        out = model(ids, past_key_values=past, use_cache=True)
        past = out.past_key_values
        found.append(out.logits)
    return torch.cat(found, 1)


@cache
def exact(line: Line, directory: Path, tokens: int) -> Tensor:
    if line.chunks_in_fp32:
        return token_by_token(line, directory, IDS.shape[1], torch.float64)[:, :tokens]
    return oracle(case(line.name), directory, IDS[:, :tokens], torch.float64)


@cache
def wanted(line: Line, directory: Path, tokens: int) -> tuple[Tensor, float]:
    """Return Hugging Face's logits of the first IDS in one pass, and the bound of the main job on
    the gap to them: four times what its fp32 is off, and 2e-5."""
    theirs = oracle(case(line.name), directory, IDS[:, :tokens])
    return theirs, min(1e-3, 4 * gap(theirs, exact(line, directory, tokens)) + 2e-5)


@BUILT
@torch.no_grad()
def test_prompts_of_any_length_are_hugging_faces(line, target, checkpoint, engine, report):
    directory, built = checkpoint(line.name), engine(line, target)
    for tokens in LENGTHS:
        theirs, bound = wanted(line, directory, tokens)
        mine = gap(eager(directory)(IDS[:, :tokens]), theirs)
        made = gap(torch.from_numpy(built.logits(IDS[:, :tokens])), theirs)
        row = {"case": line.name, "target": target, "tokens": tokens, "eager": mine}
        report("Linear layers against Hugging Face, fp32", {**row, "engine": made, "bound": bound})
        assert max(mine, made) <= bound


@BUILT
@torch.no_grad()
def test_steps_are_hugging_faces(line, target, checkpoint, engine):
    directory, tokens = checkpoint(line.name), 75
    theirs, bound = wanted(line, directory, tokens)
    if line.own_steps:
        theirs = token_by_token(line, directory, tokens, torch.float32)
        if line.chunks_in_fp32:  # its steps do not, and are nearer
            bound = min(1e-3, 4 * gap(theirs, exact(line, directory, tokens)) + 2e-5)
    model, session = eager(directory), engine(line, target).session(3)
    lengths, past = torch.zeros(3, dtype=torch.int64), model.empty_states(3, 80)
    for start, end in ((0, 65), *((i, i + 1) for i in range(65, tokens))):
        counts = torch.full((3,), end - start)
        mine, past = model.step(IDS[:, start:end], lengths, counts, past)
        made = torch.from_numpy(session.append(IDS[:, start:end]))
        lengths = lengths + counts
        assert gap(mine, theirs[:, start:end]) <= bound
        assert gap(made, theirs[:, end - 1]) <= bound


@BUILT
def test_a_saved_state_is_resumed(line, target, engine, tmp_path):
    built = engine(line, target)
    session = built.session(3)
    session.append(IDS[:, :67])
    np.savez(tmp_path / "states.npz", lengths=session.lengths, **dict(session.reserve(0)))
    again = load(built.directory, threads=1)

    def rest(session) -> list[np.ndarray]:
        return [session.append(IDS[:, a:b]) for a, b in ((67, 68), (68, 80), (80, 81))]

    def resumed(without: str = ""):
        saved, other = np.load(tmp_path / "states.npz"), again.session(3)
        for name, state in other.reserve(67):
            state[...] = 0 if name == without else saved[name]
        other.lengths[:] = saved["lengths"]
        return other

    want = rest(session)
    np.testing.assert_array_equal(rest(resumed()), want)
    for name, _ in session.reserve(0):  # each of them counts
        assert np.abs(np.subtract(rest(resumed(name)), want)).max() > 1e-3, name


# Tokens taken by each row in each call.
CALLS = ((65, 64, 1), (1, 1, 1), (2, 5, 66))


@BUILT
@torch.no_grad()
def test_padded_rows_are_what_they_are_alone(line, target, checkpoint, engine):
    directory, built = checkpoint(line.name), engine(line, target)
    theirs, bound = wanted(line, directory, 70)
    model, together = eager(directory), built.session(3)
    alone = [built.session(1) for _ in IDS]
    lengths, past = torch.zeros(3, dtype=torch.int64), model.empty_states(3, 140)
    for call in CALLS:
        fed = torch.full((3, max(call)), 3)  # padding that would show if it were read
        places = list(zip(range(3), lengths.tolist(), call, strict=True))
        for row, start, count in places:
            fed[row, :count] = IDS[row, start : start + count]
        mine, past = model.step(fed, lengths, torch.tensor(call), past)
        made = torch.from_numpy(together.append(fed, call))
        for row, start, count in places:
            want = theirs[row, start : start + count]
            one = torch.from_numpy(alone[row].append(fed[row : row + 1, :count]))
            assert max(gap(mine[row, :count], want), gap(made[row], want[-1])) <= bound
            # The floor of the bound: other widths of a batch add up in another order.
            assert gap(made[row], one[0]) <= 2e-5
        lengths = lengths + torch.tensor(call)
    same_states(built, together, alone, lengths.tolist(), bound)


def same_states(built: Engine, together, alone, lengths: list[int], bound: float) -> None:
    """Compare what the rows of a session hold with sessions of their own."""
    shapes = [state["shape"] for state in built.manifest.fields["graph"]["states"]]
    for row, (session, length) in enumerate(zip(alone, lengths, strict=True)):
        pairs = zip(shapes, together.reserve(0), session.reserve(0), strict=True)
        for shape, (name, mine), (_, one) in pairs:
            tokens = [slice(length) if axis == "C" else slice(None) for axis in shape[1:]]
            gaps = np.abs(mine[row][*tokens] - one[0][*tokens])
            # Eight fp32 epsilons of what is in a matrix that is the sum of all tokens, up to 250.
            assert gaps.max() <= max(bound, 2**-20 * np.abs(one).max()), name


@pytest.mark.parametrize("line", LINES + ALONE, ids=lambda line: line.name)
def test_only_attention_grows_with_the_context(line, checkpoint, engine):
    built = engine(line)
    for path in (checkpoint(line.name), built.directory):
        for context in (16, inspect(path).context):
            state = inspect(path, context=context).state
            assert state.fixed_bytes_per_sequence == 4 * line.carried
            assert state.elements_per_token == line.each
            assert state.bytes == 4 * (line.carried + line.each * context)
    assert inspect(built.directory).context == CONTEXT
    if not line.each:  # of others, a million tokens would take memory
        held = built.session(1).reserve(CONTEXT)
        assert sum(state.nbytes for _, state in held) == 4 * line.carried
