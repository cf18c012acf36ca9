"""Attention over cached keys and values: full, in windows, lent to later layers."""
