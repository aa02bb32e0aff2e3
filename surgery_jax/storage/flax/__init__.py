"""What Flax writes: msgpack files, and trees of arrays in memory."""
