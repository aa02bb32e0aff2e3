"""A plan executed symbolically: versions of tensors as nodes, and the roots that demand them.

Hands on a `Symbolic`. No file is opened here and no JAX imported; headers come through a callback. Imports `kit` and
below.
"""
