"""Calibration layer by layer: text through a model, and the quantization of each layer."""
