"""Optimizer states that grow with the weights, and steps of tensors that are partly new."""
