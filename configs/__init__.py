"""Configurations: common.py lists every key, one file a task."""
