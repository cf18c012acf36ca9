"""Running an engine: sessions, generation, sampling, texts. Imports no torch and no graphs."""
