"""What one training is: state, optimizer, step, loop and checkpoints."""
