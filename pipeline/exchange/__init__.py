"""The room where tables and sources are exchanged with other systems: exports, vectors and pictures made elsewhere."""
