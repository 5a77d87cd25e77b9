"""Defines the commands of launch.py."""
