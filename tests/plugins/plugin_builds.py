"""A process that builds a node of a plugin with TensorRT for RTX, with no GPU.

Argument: a folder for the plan and its kernels. Prints JSON: what was found.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from zlib import crc32

import tensorrt_rtx as trt
import torch
from lmcast_native import LIBRARY
from onnx import TensorProto, helper
from plugin_launch_plans import Case, Kernel, Launch, Output, Recipe

from lmcast import plugins
from lmcast.exporter.backends.tensorrt.parser_library import provide_parser_library
from lmcast.plugins.experts import moe_route_triton
from lmcast.plugins.launch.cubins import cubin
from lmcast.plugins.plugin import DOMAIN, REGISTRY

EXPERTS, ROUTES = 8, 2
SMS = (89, 120)


class Logger(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        if severity <= trt.ILogger.ERROR:
            self.messages.append(message)


def route() -> tuple[Recipe, list[bytes]]:
    """Return the recipe of moe_route, by hand, and its cubins."""
    logits = torch.empty(4, EXPERTS, device="meta")
    given = (logits, None, ROUTES, "softmax", 1, 1, -1.0, 1.0)
    (step,), _ = moe_route_triton.steps(*given)
    cubins, images, offset = [], [], 0
    for sm in SMS:
        made = cubin(step.compiled, sm)
        cubins.append(made.code)
        images.append((sm, offset, len(cubins[-1]), crc32(cubins[-1])))
        offset += len(cubins[-1])
    kernel = Kernel(made.name, made.threads, made.shared, images)
    # Triton's two pointers to scratch memory are last.
    numbers: list[tuple] = [("fp32", -1.0), ("fp32", 1.0), ("null",), ("null",)]
    launch = Launch(0, "0.0", [("in", 0), ("out", 0), ("out", 1), *numbers])
    outputs = [Output("fp32", -1, ["0.0", ROUTES]), Output("i64", -1, ["0.0", ROUTES])]
    return Recipe([kernel], outputs, [Case([], [("*", "0.0", 1000)], [launch])]), cubins


def model(recipe: str, kernels: bytes) -> bytes:
    attributes = {"recipe": recipe, "kernels": kernels}
    node = helper.make_node("moe_route", ["x"], ["w", "c"], domain=DOMAIN, **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", EXPERTS])
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, ["N", ROUTES])
    c = helper.make_tensor_value_info("c", TensorProto.INT64, ["N", ROUTES])
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid(DOMAIN, 1)]
    graph = helper.make_graph([node], "one", [x], [w, c])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def build(data: bytes, logger: Logger) -> tuple[list[str], bytes]:
    """Return the kinds of layers that a model became, and its plan; none where it is refused."""
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    if not trt.OnnxParser(network, logger).parse(data):
        return [], b""
    profile = builder.create_optimization_profile()
    profile.set_shape("x", (1, EXPERTS), (4, EXPERTS), (64, EXPERTS))
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(SMS)
    for i, sm in enumerate(SMS):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), i)
    layers = [network.get_layer(i).type.name for i in range(network.num_layers)]
    return layers, bytes(builder.build_serialized_network(network, config))


def main(folder: str) -> None:
    for path in Path(plugins.__path__[0]).glob("*/*_triton.py"):  # operators register themselves
        name = path.stem.removesuffix("_triton")
        import_module(f"lmcast.plugins.{path.parent.name}.{name}")
    logger = Logger()
    provide_parser_library(trt)
    registry = trt.get_plugin_registry()
    registry.load_library(str(LIBRARY))
    creators = [c for c in registry.all_creators if c.plugin_namespace == DOMAIN]
    recipe, cubins = route()
    for sm, code in zip(SMS, cubins, strict=True):
        Path(folder, f"{sm}.cubin").write_bytes(code)
    refused, _ = build(model(recipe.text() + " more", b"".join(cubins)), logger)
    reasons = list(logger.messages)
    layers, plan = build(model(recipe.text(), b"".join(cubins)), logger)
    Path(folder, "plan").write_bytes(plan)
    found = {
        "creators": sorted((c.name, c.plugin_version) for c in creators),
        "kernels": sorted(name for name, plugin in REGISTRY.items() if "triton" in plugin.kernels),
        "refused": refused,
        "reasons": reasons,
        "layers": layers,
        "recipe": recipe.text(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
