"""What several architectures share of their config.json and of the names of their weights."""
