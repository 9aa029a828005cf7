"""What each kind of node does."""
