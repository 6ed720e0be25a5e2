"""What is made of a tuned model: files that load anywhere, and a conversation."""
