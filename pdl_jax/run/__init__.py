"""One run: prepare, fine-tune, and what it leaves; and what follows it."""
