"""Settings of the whole suite: how Hypothesis draws. Devices, precision and environment are the tests' own affair."""

import os

from hypothesis import settings

settings.register_profile("local", deadline=None)  # the first call of a jitted function compiles it
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")
