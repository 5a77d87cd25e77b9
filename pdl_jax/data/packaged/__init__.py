"""One file for each text that comes inside a package; it registers itself."""
