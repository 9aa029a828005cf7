"""What is checked before and after a growth."""
