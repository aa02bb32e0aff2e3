"""Predicates of `assert`: one file each."""
