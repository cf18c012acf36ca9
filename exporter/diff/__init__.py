"""What differs between two engines: graph, numbers, formats, texts, settings, versions."""
