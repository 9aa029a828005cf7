"""What of a network a growth has to know beyond its axes: its stream, its branches, its symmetries."""
