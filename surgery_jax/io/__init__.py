"""Open inputs and outputs of a run: buffers within a budget, descriptors, direct I/O, pace, page cache, decoding.

Hands on bytes in buffers, and files that take byte ranges in any order. Imports `storage`, `compile` and below.
"""
