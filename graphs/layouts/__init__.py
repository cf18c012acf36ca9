"""How checkpoints store quantized weights: one format a file."""
