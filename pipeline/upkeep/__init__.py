"""What keeps a store in order: backfills, what is left to do, what is damaged, what can go."""
