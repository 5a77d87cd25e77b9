"""Metrics computed offline from the records of a predictions file."""
