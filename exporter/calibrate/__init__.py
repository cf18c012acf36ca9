"""Calibration, part by part: streams of text through a model, and what each layer is made of."""
