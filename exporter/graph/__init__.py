"""From eager modules to one ONNX graph: torch.export, lowering of ATen words, assembly."""
