"""Open inputs and outputs of a run."""
