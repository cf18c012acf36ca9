"""Attention with cached keys and values: full, sliding-window, and shared between layers."""
