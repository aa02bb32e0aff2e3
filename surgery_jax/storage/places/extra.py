"""What only some places need, from the extra `remote`."""

from __future__ import annotations

import errno
from importlib import import_module
from types import ModuleType

from .base import PlaceError

__all__ = ["needed"]


def needed(module: str, what: str) -> ModuleType:
    """A module of the extra `remote`.

    Raises:
        PlaceError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise PlaceError(
            errno.ENOSYS, f"{what} needs the package {package}", "pip install 'surgery_jax[remote]'"
        ) from None
