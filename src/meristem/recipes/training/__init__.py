"""A train node: transformers' Trainer, resumable, with its cost counted."""
