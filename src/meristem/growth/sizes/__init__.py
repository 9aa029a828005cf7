"""Target sizes, from a user's options or another config."""
