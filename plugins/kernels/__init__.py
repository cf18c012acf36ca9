"""Triton kernels of the operators; nothing here is imported before a kernel is asked for."""
