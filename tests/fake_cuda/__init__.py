"""A GPU that is not there, for ONNX Runtime's own CUDA provider, our plugins and our own code.

`on_fake_gpu` calls a function in a process of its own whose CUDA libraries are fakes (source/,
compiled by the first one):

    def model_on_gpu(path):               # at the top of a module; arguments and result: JSON
        session = onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider"])
        note("ready")
        session.run(None, {...})

    run = on_fake_gpu(model_on_gpu, str(path), sm=90)
    run.result                            # what it returned
    [event.name for event in run.log.after("ready").launches]

`environment` is for commands instead of functions; `missing` says why neither works here.

**What it shows.** The unmodified libonnxruntime_providers_cuda.so of the wheel loads and believes
that there is a GPU of this SM with this much memory. So: which provider each node is placed on;
which kernel each takes, as that is decided on the host, with its grid, block and stream; products
of cuBLAS with their sizes; copies and waits; what a CUDA graph holds; the peak of device memory;
how a missing driver or GPU, an older driver, an SM without machine code, and the end of memory are
told. Machine code that the driver loads is read: a launch must name a kernel of it, and have its
threads and its bytes of parameters. Launches of stand-ins for machine code are run by Triton's
interpreter over the same memory (fake_cuda.interpret): numbers of our operators. NVIDIA's
cuda-bindings work on it by `cuda.bindings.driver`, with the functions of source/driver.cpp;
`cuda.bindings.runtime` has a runtime of its own within, which asks for more.

**What it does not show.** Numbers of ONNX Runtime's own kernels and of cuBLAS, which do nothing:
what they would fill stays zero, or what `fill` says. Time. Races: work runs at once, in the order
in which it is given. What cuDNN or cuBLASLt would choose. Whether machine code runs on a GPU. A
CUDA build of torch brings libraries of its own: a process that imports it is not on the fake GPU.

Where that is cheap it is stricter than a GPU: copies whose sides are not where their way says, or
that leave an allocation, are invalid; a page behind each allocation cannot be touched.
"""

from fake_cuda.libraries import missing
from fake_cuda.log import Event, Log, log_so_far, note
from fake_cuda.process import Run, environment, on_fake_gpu

__all__ = [
    "Event",
    "Log",
    "Run",
    "environment",
    "log_so_far",
    "missing",
    "note",
    "on_fake_gpu",
]
