"""A train node: transformers' Trainer, with resuming and with its costs counted."""
