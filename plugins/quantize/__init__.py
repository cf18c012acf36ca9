"""Rounding of what quantized weights are multiplied with."""
