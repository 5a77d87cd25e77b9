"""The model behind one seam, `api.py`; only this package imports Flax."""
