"""Low-precision rounding of the inputs of products with quantized weights."""
