"""Running engines: sessions, generation, sampling, texts. It imports neither torch nor graphs."""
