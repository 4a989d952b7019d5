"""Published indexes, opened and searched."""
