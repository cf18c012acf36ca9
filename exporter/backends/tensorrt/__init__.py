"""TensorRT: plans built ahead of time from the portable graph, in a process of their own."""
