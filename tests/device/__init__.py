"""A check on a machine with a GPU: what has to be seen there, in at most nine minutes.

    python tests/device/pack.py FOLDER    # anywhere: what the machine must be given, in parts
    python tests/device/check.py FOLDER   # there: one JSON line for each result

A machine to check on may have nothing but Python, PyTorch with CUDA's libraries, and the files of
this repository: pack.py brings the rest. Parts are below 64 MiB, and can be carried one by one.
Steps are in steps.py, each a process with a limit of its own: what hangs or crashes is one line.

**None of this has run on a GPU yet.** On the fake GPU of tests/fake_cuda, test_device.py runs every
step, at small sizes: ONNX Runtime's own kernels are empty on it, so that their results must be
found wrong, and ours are interpreted.
"""
