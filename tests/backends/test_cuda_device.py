"""The GPU at hand, by NVIDIA's own bindings on a fake driver."""

import gc
import os
import threading
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from fake_cuda import missing, on_fake_gpu
from fake_driver import Driver

from lmcast.exporter.backends import cuda
from lmcast.exporter.backends.cuda import Cuda, DeviceError, local_sm, require_gpu
from lmcast.exporter.backends.gpu_call import Call

why = missing() or ("" if find_spec("cuda") else "cuda-bindings is not installed")
faked = pytest.mark.skipif(bool(why), reason=why)
GROWN = (2, 5, 4)


def grow(gpu: Any, to: Any, source: Any) -> Any:
    return gpu.capture(lambda: gpu.copy(to, source) is None)


def enter(gpu: Cuda, entered: threading.Event) -> None:
    with gpu.active():
        entered.set()


def said(gpu: Cuda) -> str:
    try:
        gpu.empty((1 << 50,), "uint8")
    except DeviceError as error:
        return str(error)
    return ""


def works() -> list[Any]:
    """Return what a copy into a longer axis holds, what is in use, and what was measured."""
    gpu = Cuda()
    with gpu.active():
        short, grown = gpu.zeros((2, 3, 4), "bfloat16"), gpu.zeros(GROWN, "bfloat16")
        given, found = gpu.host(short.shape, "bfloat16"), gpu.host(grown.shape, "bfloat16")
        given[...] = np.arange(24).reshape(given.shape)
        gpu.put(short, given)
        replay = grow(gpu, grown, short)
        assert replay is not None and gpu.capture(lambda: False) is None
        # A call that may wait is refused to a thread that captures, and allowed to others.
        assert gpu.capture(lambda: gpu.driver.cuStreamSynchronize(gpu.stream) != ()) is None
        others = threading.Thread(target=lambda: gpu.empty((1,), "int64"))
        assert gpu.capture(lambda: (others.start(), others.join(), gpu.clear(grown)) != ())
        waiting = threading.Thread(target=enter, args=(gpu, entered := threading.Event()))
        waiting.start()
        assert not entered.wait(0.1)  # work of two threads may not be mixed
        replay()
        gpu.get(found, grown)
        gpu.wait()
    waiting.join()
    assert entered.is_set()
    refused = said(gpu)
    if not (child := os.fork()):
        os._exit("in a process that was started otherwise" not in said(gpu))
    assert os.waitpid(child, 0)[1] == 0
    used = gpu.used()
    del short, replay
    gc.collect()
    facts = [gpu.name, gpu.sm, used - gpu.used(), gpu.bandwidth(1 << 20) > 0]
    return [facts, refused, found.astype(np.float32).tolist()]


@faked
def test_all_of_it():
    run = on_fake_gpu(works, sm=89)
    facts, refused, found = run.result
    assert facts == ["Fake GPU SM89", 89, 512, True]
    assert refused.endswith("cuMemAlloc returns CUDA_ERROR_OUT_OF_MEMORY")
    wanted = np.zeros(GROWN)
    wanted[:, :3] = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(found, wanted)
    assert all(event.fields["in_use"] == 0 for event in run.log.of("free")[-1:])


def refusal() -> str:
    assert local_sm() is None
    try:
        require_gpu()
    except DeviceError as error:
        return str(error)
    return ""


REFUSED = {
    "no GPU": ({"sm": None}, "no NVIDIA GPU is here"),
    "an old driver": ({"driver": 12040}, "is for CUDA 12.4, and lmcast's packages"),
    "no driver": ({"driver": None}, "no NVIDIA GPU is here, or no driver of one"),
}


@faked
@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str):
    gpu, said = REFUSED[what]
    assert said in on_fake_gpu(refusal, **gpu).result


MISSING: dict[str, tuple[list[str], type[Exception], str]] = {
    "no bindings": (["/"], ModuleNotFoundError, "pip install cuda-bindings"),
    "no bindings, no GPU": ([], ModuleNotFoundError, "no NVIDIA GPU is here"),
    "no driver": ([], RuntimeError, "no NVIDIA GPU is here, or no driver of one"),
    "a device without a driver": (
        ["/"],
        RuntimeError,
        "/ is here, and the driver's library libcuda.so.1 is not",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_no_driver(monkeypatch: pytest.MonkeyPatch, name: str):
    files, error, words = MISSING[name]

    def missing_bindings() -> None:
        raise error

    monkeypatch.setattr(cuda, "DRIVERS", files)
    monkeypatch.setattr(cuda, "bindings", missing_bindings)
    with pytest.raises(DeviceError, match=words):
        require_gpu()


def test_logits_of_two_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "bindings", Driver)
    gpu = Cuda()
    with gpu.active():
        ids = {"input_ids": ("int64", ("B", "T"))}
        call = Call(gpu, ids, {"B": 2, "T": 1, "R": 1}, 5, "bfloat16")
        one = gpu.host((2, 1, 5), "bfloat16")
        one[...] = 1.5
        gpu.put(call.logits, one)
        got = call.get()
    assert got.dtype == np.float32 and (got == 1.5).all()
