"""Weight tables: where parameters come from, as views, stacks of experts, quantized weights."""
