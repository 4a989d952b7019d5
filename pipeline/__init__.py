"""rayclip: embeddings, indexes and search for very many images. Importing this package imports nothing heavy."""

__version__ = "0.1.0"
