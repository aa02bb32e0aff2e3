"""Settings of the whole suite: how Hypothesis draws, and what is a test. Devices and environment are the tests' own
affair."""

import os
from pathlib import Path

from hypothesis import settings

settings.register_profile("local", deadline=None)  # the first call of a jitted function compiles it
settings.register_profile("ci", parent=settings.get_profile("local"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Helpers hold no tests; the search for examples would import them a second time, under another name."""
    return True if collection_path.suffix == ".py" and not collection_path.name.startswith("test_") else None
