"""One run, from preparing to its results, and what can follow it."""
