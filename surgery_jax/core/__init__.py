"""Errors, dtypes and shapes: what every layer speaks of. Standard library only."""
