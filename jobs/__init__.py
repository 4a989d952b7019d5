"""What a person or a scheduler runs: one thin module per job, `python -m jobs.<name>`."""
