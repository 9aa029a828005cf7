"""Plans: for every tensor of the large network, which small tensors it comes from and by which maps."""
