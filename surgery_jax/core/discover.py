"""Finding what extends the program: the files of a package, and what other distributions offer by entry points."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from types import ModuleType
from typing import Any, TypeVar

from .errors import PlanError

__all__ = ["check_single", "import_all", "named", "own_file", "own_named", "subclasses", "version_of"]

T = TypeVar("T")


@cache  # the metadata of a package is a file to read and to parse
def version_of(package: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def import_all(package: str, group: str | None = None, *, but: str | None = None) -> tuple[str, ...]:
    """Import every file of a package, those of the packages within it too, `but` one of these, and every module that an
    entry point of the group (by default the package's name) names. Gives the names of the latter.

    Raises:
        PlanError: what a distribution offers cannot be imported.
    """
    _import_below(package, but)
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


def _import_below(package: str, but: str | None = None) -> None:
    whole = importlib.import_module(package)
    for module in pkgutil.iter_modules(whole.__path__, f"{package}."):
        if module.name != but:
            importlib.import_module(module.name)
            if module.ispkg:
                _import_below(module.name)


def own_file(package: str, name: str) -> ModuleType | None:
    """The file of a package that is called as what is looked for, and nothing else of the package: a program that needs
    two verbs does not start with all. None if there is none, or if other distributions add to the package, so that all
    must be seen to know that a name is there once."""
    if not name.isidentifier() or name.startswith("_") or _offered().select(group=package):
        return None
    try:
        return importlib.import_module(f"{package}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{package}.{name}":
            raise
        return None


def own_named(base: type[T], package: str, name: str) -> type[T] | None:
    """The subclass of a name that the file of that name declares; None as for `own_file`."""
    file = own_file(package, name)
    own = () if file is None else (cls for cls in subclasses(base) if cls.__module__ == file.__name__)
    return next((cls for cls in own if cls.__dict__.get("name") == name), None)


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
