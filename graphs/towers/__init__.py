"""Vision towers: one file each, of its config, its parts and its weights."""
