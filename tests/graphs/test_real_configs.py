"""The config.json files of released models: how many parameters, and, of small models with every
key of theirs, the logits."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import real_configs
import torch
from real_configs import REAL, agrees, as_text, named, on_meta, shrunken
from tiny import CLASSES, ORACLES, defined, fill, gap, prompt, randomise
from tiny.family import Settings
from torch import Tensor

from lmcast.graphs import ConfigError, archs
from lmcast.graphs.archs.multimodal import HUB, MODULES, Multimodal

READ = sorted(named())


@pytest.mark.parametrize("name", READ)
def test_parameters_are_those_that_were_released(name: str):
    entry = REAL[name]
    count = sum(parameter.numel() for parameter in on_meta(entry["config"]).parameters())
    assert count == entry["parameters"]
    published = entry.get("published")
    if "beside" in entry:  # what makes it more, by at most a fiftieth
        assert not agrees(count, published)
        assert count < 10**9 * int(published.removesuffix("B")) < count * 1.02
    elif published:
        assert agrees(count, published)


@pytest.mark.parametrize("name", sorted(named(refused=True)))
def test_files_without_a_definition_are_refused_by_name(name: str):
    with pytest.raises(ConfigError, match=REAL[name]["refused"]):
        defined(REAL[name]["config"], {"model.embed_tokens.weight": torch.zeros(8, 8)})


def hugging_face(config: Settings, directory: Path) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Return the tensors that Hugging Face writes for a config, and its logits in fp32 and fp64."""
    import transformers
    from safetensors.torch import load_file

    name, seed = as_text(config)["model_type"], zlib.crc32(json.dumps(config).encode())
    ids = prompt()
    if name in ORACLES:  # Hugging Face's own class, as tests/tiny brings it to the files of the hub
        ORACLES[name].write(config, directory, seed)
        found = [ORACLES[name].logits(directory, ids, d) for d in (torch.float32, torch.float64)]
        return load_file(directory / "model.safetensors"), found
    eager = {"attn_implementation": "eager", "experts_implementation": "eager"}
    cls = getattr(transformers, CLASSES[name][1])
    model = cls._from_config(real_configs.hugging_face(config), dtype=torch.float32, **eager).eval()
    randomise(model, seed)
    model.save_pretrained(directory)
    with torch.no_grad():
        found = [model.to(d)(ids, use_cache=False).logits for d in (torch.float32, torch.float64)]
    return load_file(directory / "model.safetensors"), found


def as_released(config: Settings, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a text with the names that they have in a multimodal checkpoint."""
    arch = archs.get(archs.name_of(config))
    if not isinstance(arch, Multimodal):
        return tensors
    layout = MODULES if arch.beside == ("visual",) else HUB
    return {layout(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("name", READ)
def test_a_small_model_of_the_same_keys_matches_hugging_face(
    name: str, tmp_path: Path, report: Any
):
    entry = REAL[name]
    config = shrunken(entry["config"], entry["layers"])
    tensors, (theirs, exact) = hugging_face(config, tmp_path)
    found = defined(config, as_released(config, tensors))
    fill(found, found.model, as_released(config, tensors).__getitem__, torch.float32)
    with torch.no_grad():
        mine = found.model(prompt())
    # As in test_archs: what fp32 costs Hugging Face's own code, and noise.
    bound = min(1e-3, 4 * gap(theirs, exact) + 2e-5)
    report(
        "Small models of real configs", {"config": name, "error": gap(mine, theirs), "bound": bound}
    )
    assert theirs.std() > 0.1  # logits that could hide nothing
    assert gap(mine, theirs) <= bound


def test_enough_of_them_are_compared():
    small = {
        json.dumps(shrunken(REAL[n]["config"], REAL[n]["layers"]), sort_keys=True) for n in READ
    }
    assert len(small) >= 40
