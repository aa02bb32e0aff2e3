"""Graph to program: components, groups of equal structure, and one jitted function per group."""
