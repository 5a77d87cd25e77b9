"""Reads and checks the project's own files, so that no damage is missed."""
