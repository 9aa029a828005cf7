"""One file and one card per method."""
