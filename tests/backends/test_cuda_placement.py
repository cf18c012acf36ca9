"""Engines of target cuda on a fake GPU, in ONNX Runtime's own CUDA provider."""

import pytest
from cuda_calls import WHICH, Placed, counted, on_gpu
from fake_cuda import Log, libraries

pytestmark = pytest.mark.skipif(libraries.compiler() is None, reason="no C++ compiler")
# Each with operators of its own: caches that are shared, chunks, narrow values, factors behind the
# softcap, chosen positions, the delta rule by channels, a decay for each head, sinks. All families:
# tests/benchmarks/cuda_launches.py.
NAMES = (
    "llama/plain",
    "gemma3n_text/one of each shared",
    "llama4_text/plain",
    "mimo_v2_flash/derived layers",
    "grok2/temperature, caps",
    "deepseek_v32/plain",
    "kimi_linear/plain",
    "minimax/plain",
    "gpt_oss/plain",
)


@pytest.fixture(scope="module")
def ran(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Placed], Log]:
    folder = tmp_path_factory.mktemp("engines")
    return on_gpu({n: (str(checkpoint(n)), str(folder / str(i))) for i, n in enumerate(NAMES)})


@pytest.mark.parametrize("name", NAMES)
def test_all_of_it_is_on_the_gpu(name: str, ran: tuple[dict[str, Placed], Log]):
    placed, log = ran
    assert list(placed[name]) == ["CUDAExecutionProvider"]
    made = {which: log.after(f"{name}: {which}") for which in WHICH}
    assert counted(made["step"]) == counted(made["again"])
    for which in ("step", "again", "ragged", "grown"):
        assert made[which].launches, which
        # Nothing waits for the host, or goes there.
        assert not made[which].copies("DtoH") and not made[which].copies("HtoD"), which


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_one_cuda_graph(name: str, ran: tuple[dict[str, Placed], Log]):
    """The first step is captured, as are those after growth; the others launch what it was."""
    _, log = ran
    plain = counted(log.after(f"{name}: step"))
    for which in ("step", "again"):
        made = log.after(f"{name}, captured: {which}")
        assert len(made.of("graph")) == 1 and counted(made) == plain
        assert not made.copies("DtoH") and not made.copies("HtoD")
    assert log.after(f"{name}, captured: grown").of("graph")
