"""What the project claims, measured: each module is one kind of claim and the command that tests it."""
