"""Every operator in ONNX Runtime and as TensorRT runs it, on a fake GPU that interprets kernels."""

import pytest
from fake_cuda import Run, missing
from launch_cases import EACH
from runtimes import Wanted, every, key, run

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def turns() -> list[Wanted]:
    """Return the first prompt and the first step among the cases of each operator, the prompt
    through what is fast for one token, and the step through what is for prompts."""
    found = []
    for plugin in {plugin.name: plugin for plugin, _ in EACH}.values():
        steps = [args[0].shape[1] == 1 for args in plugin.cases()]
        found += [
            (plugin.name, steps.index(step), "float32", 128 if step else 1)
            for step in (False, True)
        ]
    return found


WANTED = {"onnxruntime": every(), "tensorrt": every() + turns()}
EVERY = [(runtime, one) for runtime, wanted in WANTED.items() for one in wanted]


done: dict[str, Run | RuntimeError] = {}


@pytest.fixture
def ran(request: pytest.FixtureRequest, runtime: str) -> Run:
    """What became of all tests of a runtime that were asked for, in one process."""
    if runtime not in done:
        items = (item for item in request.session.items if item.module is request.module)
        asked = [item.callspec.params for item in items if "wanted" in item.fixturenames]
        try:
            done[runtime] = run(runtime, [p["wanted"] for p in asked if p["runtime"] == runtime])
        except RuntimeError as error:
            done[runtime] = error  # once for all: each would start it anew
    found = done[runtime]
    if isinstance(found, RuntimeError):
        raise found
    return found


def label(value: Wanted | str) -> str:
    return value if isinstance(value, str) else key(value)


@pytest.mark.parametrize(("runtime", "wanted"), EVERY, ids=label)
def test_operator_agrees_with_exact_eager(ran: Run, runtime: str, wanted: Wanted):
    assert ran.result[key(wanted)] == ""
    meanwhile = ran.log.after(key(wanted))
    assert not meanwhile.of("copy")
    assert meanwhile.launches and all(event.ours for event in meanwhile.launches)
