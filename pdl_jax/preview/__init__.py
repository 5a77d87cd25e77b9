"""Shows what a loss will do: `collect` computes, `show` prints."""
