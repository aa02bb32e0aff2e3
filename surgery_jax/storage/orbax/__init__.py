"""Orbax checkpoints: trees, arrays in zarr, plain and OCDBT; `format` is what the others serve."""
