"""What a width that is no whole multiple asks for: padded norms, head sizes, and why some cannot be exact."""
