"""Pictures through a plan of a tower, on a fake GPU: what comes out is the portable graph's."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import ENGINES, TowerPlan, add_plan
from planned import CLOSE
from tiny.pictures import pixels, tiny_mistral3

from lmcast.exporter import Engine, export
from lmcast.exporter.runtime.images import Picture
from lmcast.plugins.errors import InputError

TOWER = "plans/p-vision.plan"
RANGES = {"N": [1, 1, 2], "M": [1, 4, 12], "K": [1, 4, 16]}
SAME = [pixels(16, 24, seed) for seed in range(5)]  # of one grid, six tokens each
PICTURES = [*SAME, pixels(8, 32, 9)]
STATES = [f"layers.{i}.{x}" for i in range(2) for x in ("key", "value")]


@pytest.fixture(scope="module")
def portable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tower")
    tiny_mistral3(folder / "checkpoint")
    options: dict[str, Any] = {"parity": False, "context": 64}
    return export(folder / "checkpoint", folder / "engine", "onnx", **options).directory


def planned(portable: Path, folder: Path, **changes: Any) -> Engine:
    """Return an engine with plans; changes: of the tower's entry in engine.json."""
    tower = {"file": TOWER, "ranges": RANGES, "operators": {}, **changes}
    entry = {"vision": tower} if changes != {"file": None} else {}
    return Engine(add_plan(portable, folder / "planned", STATES, entry=entry))


def features(engine: Engine, pictures: list[np.ndarray]) -> list[np.ndarray]:
    seen = [engine.tower.picture(picture) for picture in pictures]
    engine.tower.see(seen)
    return [picture.features for picture in seen if picture.features is not None]


def test_features_are_those_of_the_portable_graph(portable: Path, gpu, tmp_path: Path):
    engine = planned(portable, tmp_path)
    for _ in range(2):
        ours, theirs = (features(e, PICTURES) for e in (engine, Engine(portable, threads=1)))
        assert [len(own) for own in ours] == [6] * 5 + [4]
        for own, other in zip(ours, theirs, strict=True):
            assert own.dtype == np.float32 and np.abs(own).max() > 0.1
            np.testing.assert_allclose(own, other, atol=CLOSE)
    (plan,) = ENGINES  # the text's is not loaded
    assert isinstance(plan, TowerPlan)
    (context,) = plan.contexts
    assert context.shapes["patches"][:3] == (1, 4, 4)


def test_a_picture_larger_than_the_plan_takes_is_refused(portable: Path, gpu, tmp_path: Path):
    engine = planned(portable, tmp_path)
    words = r"becomes 16 tokens, and plans/p-vision.plan takes 12: make it smaller \(--max-pixels\)"
    with pytest.raises(InputError, match=words):
        features(engine, [pixels(32, 32)])
    smaller: Picture = engine.picture(pixels(32, 32), max_pixels=12 * 64)
    engine.tower.see([smaller])
    assert smaller.features is not None


def test_an_engine_whose_plans_are_of_text_alone_says_so(portable: Path, gpu, tmp_path: Path):
    engine = planned(portable, tmp_path, file=None)
    with pytest.raises(InputError, match=r"has no plan of the tower beside it: `lmcast build"):
        features(engine, SAME)


def test_a_plan_of_another_tower_is_refused(portable: Path, gpu, tmp_path: Path, monkeypatch):
    engine = planned(portable, tmp_path)
    names = TowerPlan.get_tensor_name
    monkeypatch.setattr(TowerPlan, "get_tensor_name", lambda plan, i: f"x{names(plan, i)}")
    with pytest.raises(InputError, match=r"p-vision.plan: .*is not of this engine"):
        features(engine, SAME)
