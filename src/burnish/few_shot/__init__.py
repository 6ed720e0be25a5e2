"""Few-shot learning: which way to learn from k examples is worth it, measured on the same draws and the same test rows."""
