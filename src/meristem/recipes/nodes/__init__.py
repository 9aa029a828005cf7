"""The work of each kind of node."""
