"""Finding what extends the program: the files of a package, and what other distributions offer by entry points."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

__all__ = ["import_all"]


def import_all(package: str, group: str | None = None) -> tuple[str, ...]:
    """Import every file of a package, those of the packages within it too, and every module that an entry point of the
    group (by default the package's name) names. Gives the names of the latter.

    Raises:
        ImportError: one of them cannot be imported; says which distribution offers it.
    """
    whole = importlib.import_module(package)
    for module in pkgutil.walk_packages(whole.__path__, f"{package}."):
        importlib.import_module(module.name)
    given = []
    for point in _offered().select(group=group or package):
        try:
            importlib.import_module(point.module)
        except ImportError as error:
            offered = point.dist.name if point.dist is not None else "an installed distribution"
            raise ImportError(f"{offered} offers {point.name} in {point.module}, which fails: {error}") from error
        given.append(point.module)
    return tuple(given)


@cache
def _offered() -> Any:  # another type from Python 3.12 on
    return entry_points()
