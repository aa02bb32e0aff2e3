"""The command `surgery-jax`: words to calls of `api`, results to text, errors to exit codes."""
