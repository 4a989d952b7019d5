"""Queries answered: by a plain service, and over HTTP."""
