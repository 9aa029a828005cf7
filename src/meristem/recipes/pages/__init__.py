"""The output of a run for people: tables, pictures, pages."""
