"""Builds an ONNX file with TensorRT for RTX, as a process: some graphs make the library abort.

Arguments: the file; JSON, input -> the least, usual and greatest shape. Prints the bytes of a plan.
"""

import json
import sys

import tensorrt_rtx as trt


def main(path: str, shapes: str) -> None:
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    if not parser.parse_from_file(path):
        sys.exit("\n".join(parser.get_error(i).desc() for i in range(parser.num_errors)))
    profile = builder.create_optimization_profile()
    for name, three in json.loads(shapes).items():
        profile.set_shape(name, *three)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    # The kind of GPU is named, so that none needs to be here.
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    print(0 if plan is None else plan.nbytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
