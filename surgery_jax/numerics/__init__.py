"""Arithmetic that is the same everywhere: exact kernels, bounds of magnitudes, low rank, random streams, LAPACK.

Hands on kernels that operations compute with, for devices and in NumPy. Imports `core`.
"""
