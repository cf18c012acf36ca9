"""Launch plans: how Triton kernels are compiled ahead of time and replayed; knows no operator."""
