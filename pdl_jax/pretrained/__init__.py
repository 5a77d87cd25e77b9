"""Readers of pretrained checkpoints."""
