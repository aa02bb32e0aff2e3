"""What proves a run: digests of tensors and files, receipts, signatures, and what is checked against them."""
