"""The model: found and loaded, made trainable, asked for log-probabilities, asked for text."""
