"""What PyTorch writes."""
