"""The GPU at hand, by NVIDIA's own bindings on a fake driver."""

from importlib.util import find_spec
from typing import Any

import pytest
from fake_cuda import missing, on_fake_gpu

why = missing() or ("" if find_spec("cuda") else "cuda-bindings is not installed")
pytestmark = pytest.mark.skipif(bool(why), reason=why)
GROWN = (2, 5, 4)


def works() -> list[Any]:
    """Return what a copy into a longer axis holds, what is in use, and what was measured."""
    import gc
    import threading

    import numpy as np

    from lmcast.exporter.backends.cuda import Cuda, OutOfMemory

    gpu = Cuda()
    with gpu.active():
        short, grown = gpu.zeros((2, 3, 4), "bfloat16"), gpu.zeros(GROWN, "bfloat16")
        given, found = gpu.host(short.shape, "bfloat16"), gpu.host(grown.shape, "bfloat16")
        given[...] = np.arange(24).reshape(given.shape)
        gpu.put(short, given)
        replay = gpu.capture(lambda: gpu.copy(grown, short) is None)
        assert replay is not None and gpu.capture(lambda: False) is None
        # A call that may wait is refused to a thread that captures, and allowed to others.
        assert gpu.capture(lambda: gpu.driver.cuStreamSynchronize(gpu.stream) != ()) is None
        others = threading.Thread(target=lambda: gpu.zeros((1,), "int64"))
        assert gpu.capture(lambda: (others.start(), others.join(), gpu.clear(grown)) != ())
        replay()
        gpu.get(found, grown)
        gpu.wait()
    try:
        gpu.empty((1 << 50,), "uint8")
    except OutOfMemory as error:
        refused = str(error)
    used = gpu.used()
    del short, replay
    gc.collect()
    facts = [gpu.name, gpu.sm, used - gpu.used(), gpu.bandwidth(1 << 20) > 0]
    return [facts, refused, found.astype(np.float32).tolist()]


def test_all_of_it():
    import numpy as np

    run = on_fake_gpu(works, sm=89)
    facts, refused, found = run.result
    assert facts == ["Fake GPU SM89", 89, 512, True]
    assert refused.endswith("cuMemAlloc returns CUDA_ERROR_OUT_OF_MEMORY")
    wanted = np.zeros(GROWN)
    wanted[:, :3] = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(found, wanted)
    assert all(event.fields["in_use"] == 0 for event in run.log.of("free")[-1:])


def refusal() -> str:
    from lmcast.exporter.backends.cuda import DeviceError, local_sm, require_gpu

    assert local_sm() is None
    try:
        require_gpu()
    except DeviceError as error:
        return str(error)
    return ""


REFUSED = {
    "no GPU": ({"sm": None}, "no NVIDIA GPU is here"),
    "an old driver": ({"driver": 12040}, "is for CUDA 12.4, and lmcast's packages"),
    "no driver": ({"driver": None}, "no driver of an NVIDIA GPU is here"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str):
    gpu, said = REFUSED[what]
    assert said in on_fake_gpu(refusal, **gpu).result
