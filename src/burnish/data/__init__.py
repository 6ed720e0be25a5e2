"""From files to packed sequences: rows, sources, clean, dedup and split read no torch; render and feed make tensors."""
