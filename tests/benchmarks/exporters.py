"""One checkpoint, three exporters. Each function runs in a process of its own."""

import runpy
import sys
from pathlib import Path
from typing import Any


def lmcast(
    checkpoint: str, output: str, recipe: str | None = None, weights: str | None = None
) -> None:
    """Ours, as a user runs it, but without the parity run: the others have none."""
    from lmcast.exporter.cli import main

    sys.argv = ["lmcast", "export", checkpoint, "-o", output, "--no-parity"]
    sys.argv += ["--recipe", recipe] if recipe else []
    sys.argv += ["--weights", weights] if weights else []
    main()


def genai(checkpoint: str, output: str, precision: str = "fp32") -> None:
    """onnxruntime-genai's model builder, as its documentation runs it."""
    cache = Path(output, "cache")
    sys.argv = ["builder", "-i", checkpoint, "-o", output, "-p", precision, "-e", "cpu"]
    sys.argv += ["-c", str(cache)]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    if cache.exists():
        cache.rmdir()


def torch_onnx(checkpoint: str, output: str) -> None:
    """torch.onnx.export on the Hugging Face model, with its cache as inputs and outputs."""
    import torch
    from torch import Tensor, nn
    from torch.export import Dim
    from transformers import AutoModelForCausalLM, DynamicCache

    class WithCache(nn.Module):
        """The model as a function of token ids and one key and value a layer."""

        def __init__(self, model: Any):
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, past: list[tuple[Tensor, Tensor]]) -> Any:
            cache = DynamicCache(past)
            logits = self.model(input_ids, past_key_values=cache, use_cache=True).logits
            return logits, [(layer.keys, layer.values) for layer in cache.layers]

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    config = model.config
    shape = (1, config.num_key_value_heads, 7, config.head_dim)
    past = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
    ids = torch.zeros(1, 3, dtype=torch.int64)
    axes = ({1: Dim.DYNAMIC}, [({2: Dim.DYNAMIC}, {2: Dim.DYNAMIC}) for _ in past])
    Path(output).mkdir()
    torch.onnx.export(
        WithCache(model), (ids, past), Path(output, "model.onnx"),
        dynamic_shapes=axes, dynamo=True, external_data=True,
    )  # fmt: skip
