"""The weights of an engine: linked, copied, converted or quantized."""
