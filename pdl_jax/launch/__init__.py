"""From one machine to many: what is checked and started before training."""
