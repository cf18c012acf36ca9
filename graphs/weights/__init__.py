"""Where the parameters of a model come from: names, views, stacks of experts, quantized parts."""
