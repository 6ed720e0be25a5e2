"""Base against tuned: what they answer, what it is worth, with which certainty, and the page that says so."""
