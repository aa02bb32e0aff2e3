"""What Flax writes."""
