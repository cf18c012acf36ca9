"""Proof that an engine equals eager PyTorch, and the cost of quantization."""
