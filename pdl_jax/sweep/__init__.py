"""Sweeps: named axes to cells, and cells to finished runs that survive.

Reading order: cell, axes, claims, child, local, status; then, of the Ray
engine, ray_engine, placement and gang.
"""
