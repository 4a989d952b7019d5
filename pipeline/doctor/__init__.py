"""What would stop, slow or expose a run, found before it starts; the door is run.py."""
