"""Our nodes in sessions of ONNX Runtime on a fake GPU: states, memory, graphs, what is refused."""

import pytest
from fake_cuda import Run, missing
from onnxruntime_nodes import exhausted, sessions
from runtimes import on_gpu

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return on_gpu(sessions, str(tmp_path_factory.mktemp("model")))


def test_a_state_apart_is_copied(ran: Run):
    """What the caller does not bind as past and present at once is kept."""
    assert not ran.result["states"]["apart"] and ran.result["states"]["kept"]
    copies = ran.log.after("apart").of("copy")
    assert [(c.fields["way"], c.fields["bytes"]) for c in copies] == [
        ("DtoD", ran.result["states"]["bytes"])
    ]


def test_caches_grow_in_one_session(ran: Run):
    for name in ("6 1", "700 1", "6 3"):  # capacity and rows
        assert not ran.result["states"][name], name
        assert not ran.log.after(name).of("copy")


def test_scratch_memory_is_taken_once(ran: Run):
    """From the provider's arena; and launches are in the provider's own stream."""
    assert ran.log.after("apart").of("allocate")
    again = ran.log.after("again")
    assert not again.of("allocate", "free")
    assert len({event.fields["stream"] for event in again.launches} - {0}) == 1


def test_shapes_of_outputs_are_inferred(ran: Run):
    """By name of the inputs' axes, though the graph declares none."""
    assert ran.result["states"]["shapes"] == [["in0_0", "in0_1", 2, 8], ["in0_0", "in3_1", 20]]


def test_steps_are_captured_as_graphs(ran: Run):
    assert not ran.result["captured"]
    for name in ("replay", "changed"):
        (one,) = ran.log.after(name).of("graph")
        assert one.fields["nodes"] == len(ran.log.after(name).launches) == 5


def test_nodes_share_machine_code(ran: Run):
    """It is a file beside the graph, loaded once for all of them, and never on the device."""
    loading = ran.log.after("load")
    assert len(loading.of("module")) == ran.result["shared"] > 5
    assert not loading.of("copy", "allocate")


def test_scratch_memory_that_is_not_left():
    """Half a MiB is: the other is of inputs and outputs."""
    said = on_gpu(exhausted, memory=3 << 19).result
    assert "lmcast.mla_attention node0: " in said and "Failed to allocate memory" in said


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


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str, ran: Run):
    said = ran.result["refused"][what]
    assert "lmcast.mla_attention node0: " in said and "\n" not in said
    assert REFUSED[what] in said
