"""How tensors of several models become one: methods, one a file in `methods`, and the operations that they share."""
