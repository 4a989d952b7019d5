"""A corpus and a model that mean something offline: drawn shapes, and a tiny OpenCLIP trained on them."""
