"""What a run shows: tables, pictures, pages."""
