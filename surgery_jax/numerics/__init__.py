"""Exact kernels, magnitudes, low rank, random streams, BLAS and LAPACK."""
