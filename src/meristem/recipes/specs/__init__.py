"""The sections of a recipe file, which are checked when it is read."""
