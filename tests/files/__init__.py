"""Checkpoints and recipes that tests write: quantized, malformed, odd but legal."""
