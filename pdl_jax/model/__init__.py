"""The model behind one seam, `lm.py`; only this package imports Flax."""
