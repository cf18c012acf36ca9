"""Custom operators: eager definition, ONNX body and kernels of each; they know no model."""
