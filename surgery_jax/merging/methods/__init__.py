"""The merge methods, one a file; each is found by being here."""
