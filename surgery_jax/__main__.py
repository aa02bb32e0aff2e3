"""`python -m surgery_jax` is the command `surgery-jax`."""

import sys

from .cli.main import main

sys.exit(main())
