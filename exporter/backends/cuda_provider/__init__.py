"""ONNX Runtime's CUDA provider: what it runs, and machine code for what it has no kernel for."""
