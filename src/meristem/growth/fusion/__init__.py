"""What `growth/fuse.py` is made of: the parts of a fusion of several networks."""
