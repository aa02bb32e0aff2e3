"""Predicates of `assert`: one a file, found by being there. Imports `kit` and below."""
