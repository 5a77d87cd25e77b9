"""Sweeps: axes become cells, and cells become finished runs.

Read cell, axes, claims, child, local and status in this order, then the Ray
engine: ray_engine, placement and gang.
"""
