"""A run from check to commit."""
