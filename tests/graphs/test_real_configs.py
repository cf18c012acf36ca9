"""The config.json files of released models: how many parameters, and, of small models with every
key of theirs, the logits."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import real_configs
import torch
from files import released
from real_configs import REAL, agrees, as_text, cut, named, on_meta, shrunken, with_few_experts
from tiny import CLASSES, ORACLES, defined, fill, gap, prompt, randomise
from tiny.family import Settings
from torch import Tensor

from lmcast.graphs import ConfigError, define
from lmcast.graphs.layouts.modelopt import of_file
from lmcast.graphs.weights.sources import Packed, leaves

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
    settings = real_configs.hugging_face(config)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # Hugging Face draws sinks and steps at random, and randomise adds
        model = cls._from_config(settings, dtype=torch.float32, **eager).eval()
    randomise(model, seed)
    model.save_pretrained(directory)
    with torch.no_grad():
        found = [model.to(d)(ids, use_cache=False).logits for d in (torch.float32, torch.float64)]
    return load_file(directory / "model.safetensors"), found


@pytest.mark.parametrize("name", READ)
def test_a_small_model_of_the_same_keys_matches_hugging_face(
    name: str, tmp_path: Path, report: Any
):
    entry = REAL[name]
    config = shrunken(entry["config"], entry["layers"])
    tensors, (theirs, exact) = hugging_face(config, tmp_path)
    named_so = released.as_released(config)
    tensors = {named_so(name): tensor for name, tensor in tensors.items()}
    found = defined(config, tensors)
    fill(found, found.model, tensors.__getitem__, torch.float32)
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


QUANTIZED = [
    pytest.param(name, release, id=f"{name} {i}")
    for name in READ
    for i, release in enumerate(REAL[name].get("quantized", ()))
    if release.get("section", {}).get("quant_method") != "bitsandbytes"  # refused by name
]


@pytest.mark.parametrize(("name", "release"), QUANTIZED)
def test_quantized_releases_are_read(name: str, release: Settings):
    entry = REAL[name]
    config = with_few_experts(cut(entry["config"], entry["layers"]))
    section = release.get("section") or of_file(release["hf_quant_config"], "hf_quant_config.json")
    plain = released.plain(config)
    stored, weights = released.quantized(plain, section)
    place = "quantization_config"
    whole = (
        {**config, "text_config": {**config["text_config"], place: section}}
        if "within" in release
        else {**config, place: section}
    )
    shapes, dtypes = ({n: both[i] for n, both in stored.items()} for i in (0, 1))
    found = define(whole, shapes, (), dtypes, text_only=True)
    assert found.parameters == released.size(plain)
    read = [leaf for source in found.binding.sources.values() for leaf in leaves(source)]
    assert {leaf.values.tensor for leaf in read if isinstance(leaf, Packed)} == weights
