"""What LoRA adapters are: names, factors, ranks."""
