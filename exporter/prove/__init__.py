"""Proof that an engine equals eager PyTorch, and what quantization costs."""
