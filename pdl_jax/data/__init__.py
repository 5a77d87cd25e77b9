"""Data sets, tasks, tokenizer and the input pipeline."""
