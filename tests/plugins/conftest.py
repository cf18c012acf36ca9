"""Triton's interpreter runs kernels in these tests."""

from interpreter import improve

improve()
