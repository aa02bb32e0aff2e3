"""`python -m surgery_jax` is the command `surgery-jax`."""

from .cli.main import entry

entry()
