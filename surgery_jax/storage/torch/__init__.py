"""What PyTorch writes: tables of tensors in zips and pickles that are never executed, distributed checkpoints."""
