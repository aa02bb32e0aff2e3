"""Graph to program: byte moves, components, groups of equal structure, and one jitted function per group.

Hands on a `Program` and the functions of its groups. Opens no file. Imports `graph` and below.
"""
