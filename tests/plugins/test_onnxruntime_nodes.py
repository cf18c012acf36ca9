"""Our nodes in sessions of ONNX Runtime on a fake GPU: states, memory, graphs, what is refused."""

from pathlib import Path

import pytest
from fake_cuda import Run, missing
from onnxruntime_nodes import captured, refusals, shared, states
from runtimes import on_gpu

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def stepped() -> Run:
    return on_gpu(states)


def test_a_state_apart_is_copied(stepped: Run):
    """What the caller does not bind as past and present at once is kept."""
    assert not stepped.result["apart"] and stepped.result["kept"]
    copies = stepped.log.after("apart").of("copy")
    assert [(c.fields["way"], c.fields["bytes"]) for c in copies] == [
        ("DtoD", stepped.result["bytes"])
    ]


def test_caches_grow_in_one_session(stepped: Run):
    for name in ("6 1", "700 1", "6 3"):  # capacity and rows
        assert not stepped.result[name], name
        assert not stepped.log.after(name).of("copy")


def test_scratch_memory_is_taken_once(stepped: Run):
    """From the provider's arena; and launches are in the provider's own stream."""
    assert stepped.log.after("apart").of("allocate")
    again = stepped.log.after("again")
    assert not again.of("allocate", "free")
    assert len({event.fields["stream"] for event in again.launches} - {0}) == 1


def test_shapes_of_outputs_are_inferred(stepped: Run):
    """By name of the inputs' axes, though the graph declares none."""
    assert stepped.result["shapes"] == [["in0_0", "in0_1", 2, 8], ["in0_0", "in3_1", 20]]


def test_steps_are_captured_as_graphs():
    ran = on_gpu(captured)
    assert not ran.result["changed"]
    for name in ("replay", "changed"):
        (one,) = ran.log.after(name).of("graph")
        assert one.fields["nodes"] == len(ran.log.after(name).launches) == 5


def test_nodes_share_machine_code(tmp_path: Path):
    """It is a file beside the graph, loaded once for all of them, and never on the device."""
    ran = on_gpu(shared, str(tmp_path))
    size = (tmp_path / "kernels.bin").stat().st_size
    loading = ran.log.after("load")
    assert len(loading.of("module")) == ran.result > 5
    assert not loading.of("copy") and ran.log.peak < size
    assert not ran.log.after("loaded").of("module")


# What is wrong -> a part of what is said.
REFUSED = {
    "SM": "kernel write was compiled for SM89, and this GPU is SM90: export again with this GPU",
    "damaged": "kernel write for SM90: its machine code is damaged, or another's: export again",
    "shorter": "', not an integer from 1 to ",
    "plan": "is 'more', not the end of the launch plan",
    "input": "the first input, its machine code, is no initializer",
    "outputs": "the node has 1 outputs, its launch plan 2",
    "type": "input 3 has not the type of the output that is made in its memory",
    "shape": "no case of the launch plan is for inputs of shapes [5,1,2,8] [5,1,2,4]",
}


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    found: dict[str, str] = on_gpu(refusals).result
    return found


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, refused: dict[str, str]):
    assert "lmcast.mla_attention node0: " in refused[what]
    assert REFUSED[what] in refused[what] and "\n" not in refused[what]
