"""From embedding tables to a merged, measured, published FAISS index."""
