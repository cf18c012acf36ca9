"""Calibration: number formats, and algorithms that choose codes and scales."""
