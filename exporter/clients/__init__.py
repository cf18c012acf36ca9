"""Other programs' contracts: an engine's graph under their names, and the files they look for."""
