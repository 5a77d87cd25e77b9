"""Metrics computed offline from the records of a predictions file."""

from pdl_jax.evaluate.registry import Measurement, Metric, register

__all__ = ['Measurement', 'Metric', 'register']
