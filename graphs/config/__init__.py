"""Reading a config.json: typed, in today's spelling, nothing ignored in silence."""
