"""Rescaled weights of the quality benchmark: others, of the same function."""

from pathlib import Path

import pytest
import tiny


@pytest.mark.parametrize("name", ["llama/plain", "gemma3_text/derived types"])
def test_logits_stay(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import rescale

    config, tensors = tiny.read(tiny.make(tiny.case(name), tmp_path))
    other = rescale.rescaled(config, list(tensors), tensors.__getitem__)
    layer = "model.layers.0.mlp.down_proj.weight"
    assert tiny.gap(other[layer], tensors[layer]) > 0.01
    before = tiny.logits(config, tensors)
    # fp32 in another order: some hundred roundings of numbers of this size.
    assert tiny.gap(tiny.logits(config, other), before) < 1e-5 * float(before.abs().max())
