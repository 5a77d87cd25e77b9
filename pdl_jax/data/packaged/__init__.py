"""One TFDS builder for each text that comes inside a Python package."""
