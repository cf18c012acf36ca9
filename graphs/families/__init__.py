"""Keys of config.json and parts of models that several architectures share."""
