"""Studies: a question with a gate, sides that are recipe nodes, one protocol, generated pages."""
