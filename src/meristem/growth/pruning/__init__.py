"""What pruning measures on data, and what it fits."""
