"""Finding what extends the program: the files of a package, and what other distributions offer by entry points."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from typing import Any, TypeVar

from .errors import PlanError

__all__ = ["check_single", "import_all", "named", "subclasses"]

T = TypeVar("T")


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


def subclasses(cls: type[T]) -> Iterator[type[T]]:
    """All classes below one that have been imported, parents first."""
    for child in cls.__subclasses__():
        yield child
        yield from subclasses(child)


def named(base: type[T], package: str, what: str) -> dict[str, type[T]]:
    """The subclasses that say their `name`, by it, sorted; found by importing the files of a package, and what entry
    points name. `what` they are is for messages.

    Raises:
        PlanError: two of one name, or what an entry point names fails.
    """
    import_all(package)
    found: dict[str, type[T]] = {}
    for cls in subclasses(base):
        if "name" in cls.__dict__:
            name = cls.__dict__["name"]
            check_single(what, name, found.setdefault(name, cls), cls)
    return dict(sorted(found.items()))


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
