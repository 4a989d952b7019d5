"""From image columns to embedding tables."""
