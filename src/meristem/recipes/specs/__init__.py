"""A recipe file: what each section takes, checked when it is read."""
