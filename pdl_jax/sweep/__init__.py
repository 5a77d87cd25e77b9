"""Turns the axes of a sweep into cells, and cells into finished runs.

Read claims, axes, child, local and status in this order, then the Ray engine:
ray_engine, placement and gang.
"""
