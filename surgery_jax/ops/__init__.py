"""Transforms: one verb a file, found by being there; `kit` says how they are declared. Imports `lora` and below."""
