"""Configurations of mergekit to plans of ours: one concern a file."""
