"""Finding what extends the program: the files of a package, and what other distributions offer by entry points."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .errors import PlanError

__all__ = ["check_single", "import_all"]


def import_all(package: str, group: str | None = None) -> tuple[str, ...]:
    """Import every file of a package, those of the packages within it too, and every module that an entry point of the
    group (by default the package's name) names. Gives the names of the latter.

    Raises:
        PlanError: what a distribution offers cannot be imported.
    """
    whole = importlib.import_module(package)
    for module in pkgutil.walk_packages(whole.__path__, f"{package}."):
        importlib.import_module(module.name)
    given = []
    for point in _offered().select(group=group or package):
        offered = point.dist.name if point.dist is not None else "an installed distribution"
        try:
            importlib.import_module(point.module)
        except Exception as error:  # the code of others
            raise PlanError(
                f"{offered} offers {point.name} of {group or package}, which cannot be imported",
                found=f"{point.module}: {type(error).__name__}: {error}",
                hint=f"mend or uninstall {offered}",
            ) from error
        given.append(point.module)
    return tuple(given)


def check_single(what: str, name: str, first: type, second: type) -> None:
    """Refuse a second class for a name.

    Raises:
        PlanError: they are two.
    """
    if first is not second:
        raise PlanError(
            f"two {what} are called {name}",
            found=f"those of {first.__module__} and {second.__module__}",
            hint="uninstall the distribution that adds one of them, or give that another name",
        )


@cache
def _offered() -> Any:  # another type from Python 3.12 on
    return entry_points()
