"""The loss of a linear head without the logits of all tokens."""
