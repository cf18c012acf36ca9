"""Transforms of tensors, as in torchvision."""
