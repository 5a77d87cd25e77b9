"""Runs one training on several hosts: checks them first, watches them later."""
