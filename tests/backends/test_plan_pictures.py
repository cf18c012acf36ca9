"""Sessions on plans with pictures, where no GPU is; and what the calls of a GPU carry of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_driver import Driver
from fake_tensorrt import ENGINES, add_plan
from planned import CLOSE
from tiny.pictures import tiny_mistral3

from lmcast.exporter import Engine, export
from lmcast.exporter.backends import cuda
from lmcast.exporter.backends.cuda import Cuda
from lmcast.exporter.backends.gpu_call import Call, sizes_of
from lmcast.exporter.backends.onnxruntime import BackendError
from lmcast.exporter.backends.tensorrt.build import require_pictures
from lmcast.exporter.backends.tensorrt.request import Request
from lmcast.exporter.engine.description import Vision
from lmcast.exporter.runtime.images import Images, Picture
from lmcast.plugins.records import read

WIDTH = 32
# Of each row of a batch, text as n tokens and pictures as -n; the last is of text alone.
ROWS = [(3, -4, 2, -1, 4), (-6, 5), (7,)]


def images(parts: tuple[int, ...], seed: int) -> Images | None:
    drawn, rows, used, pictures = np.random.default_rng(seed), list[int](), 0, list[Picture]()
    for part in parts:
        if part > 0:
            rows += [-1] * part
            continue
        rows += range(used, used - part)
        used -= part
        features = drawn.standard_normal((-part, WIDTH)).astype(np.float32)
        pictures.append(Picture.of_features(features))
    return Images(tuple(pictures), np.array(rows)) if pictures else None


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    tiny_mistral3(folder / "checkpoint")
    export(folder / "checkpoint", folder / "engine", "onnx", parity=False, context=64)
    return folder / "engine"


@pytest.mark.parametrize("most", [32, 5])
def test_pictures_of_a_ragged_batch(seeing: Path, gpu: Any, tmp_path: Path, most: int):
    """All at once, and in pieces that end within pictures."""
    about = Engine(seeing, threads=1).manifest.about
    aliased = [state.name for state in about.graph.states if "C" in state.shape]
    add_plan(seeing, tmp_path / "planned", aliased, max_tokens=most)
    counts = [sum(map(abs, parts)) for parts in ROWS]
    ids = np.random.default_rng(0).integers(1, 20, (len(ROWS), max(counts)))
    given = [images(parts, seed) for seed, parts in enumerate(ROWS)]
    outs = []
    for portable in (False, True):
        engine = Engine(tmp_path / "planned", threads=1 if portable else None, portable=portable)
        session = engine.session(len(ROWS))
        outs.append([session.append(ids, counts, given)])
        outs[-1] += [session.append(ids[:, i : i + 1]) for i in range(4)]
    np.testing.assert_allclose(*outs, atol=CLOSE)
    (plan,) = ENGINES
    steps = [context for context in plan.contexts if context.profile == 0]
    assert all(context.shapes["image_features"] == (1, WIDTH) for context in steps)
    assert sum(context.replays for context in steps) == 4 - len(steps), "steps are captured"


def test_features_are_rounded_on_their_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "bindings", Driver)
    gpu = Cuda()
    asked = {
        "input_ids": ("int64", ("B", "T")), "logit_rows": ("int64", ("B", "R")),
        "image_features": ("bfloat16", ("F", 3)), "image_rows": ("int64", ("B", "T")),
    }  # fmt: skip
    features = np.array([[1.0, 1 / 3, -2.0], [0.5, 1e-3, 3e38]], np.float32)
    given = {
        "input_ids": np.array([[4, 0, 0, 5]]), "logit_rows": np.array([[3]]),
        "image_features": features, "image_rows": np.array([[-1, 0, 1, -1]]),
    }  # fmt: skip
    with gpu.active():
        call = Call(gpu, asked, sizes_of(given), 7, "float32")
        assert call.fits(given) and not call.fits(given | {"image_features": features[:1]})
        call.put(given)
        for name, (dtype, _) in asked.items():
            want = given[name].astype(cuda.DTYPES[dtype].numpy)
            got = gpu.host(want.shape, dtype)
            place = cuda.Array(call._inputs.memory, call.address(name), want.shape, dtype)
            gpu.get(got, place)
            gpu.wait()
            assert got.tobytes() == want.tobytes(), name


@pytest.mark.parametrize(("most", "told"), [(3, True), (4, False)])
def test_a_plan_holds_a_picture_that_sees_itself(most: int, told: bool):
    sizes = {"side": 56, "patch": 14, "merge": 2}
    medium = {"placeholder": "<a>", "written": "<a>", "token": "<b>", "id": 5, "sizes": sizes}
    pixels = {"resample": "bilinear", "rescale": 1 / 255, "mean": None, "std": None}
    processor = {"kind": "gemma3", "image": medium | {"pixels": pixels}}
    processor |= {"marks": {"begin": "<a>", "end": "<c>"}}
    request = Request("tensorrt-rtx", (89,), 1, 64, most, 1, most)
    taken = ["image_features", "image_rows"]
    given = {"file": "vision.onnx", "inputs": [], "outputs": [], "parameters": 1}
    given |= {"optimized": True, "text_inputs": taken, "processor": processor}
    require_pictures(None, request)
    # Of causal texts, pictures are cut anywhere.
    require_pictures(read(Vision, given, "vision."), request)
    ahead = read(Vision, given | {"text_inputs": [*taken, "visible_ends"]}, "vision.")
    if not told:
        return require_pictures(ahead, request)
    with pytest.raises(BackendError, match="--max-tokens is 3; a picture of this model has 4"):
        require_pictures(ahead, request)
