"""Tensors made from a plan: whole or in pieces, with noise, rounded."""
