"""The model, used through `lm.py`; only this package imports Flax."""
