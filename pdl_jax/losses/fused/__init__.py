"""Loss of a linear head without the logits of all tokens.

Reading order: api, sharded, kernel, tiles, plan.
"""
