"""A plan executed symbolically: versions of tensors as nodes, and the roots that demand them. No file is
opened here."""
