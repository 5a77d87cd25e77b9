"""Training: state, optimizer, step, loop and checkpoints."""
