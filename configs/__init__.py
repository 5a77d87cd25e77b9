"""Configurations: base.py has the modes, one file a task."""
