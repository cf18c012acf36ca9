"""Where the weights of an engine lie: linked, copied, converted or quantized."""
