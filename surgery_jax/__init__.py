"""Checkpoint surgery: declarative plans that edit the weights of neural networks, checked whole, compiled and streamed.

Names are brought in when they are first used, so that importing this package costs nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, which takes longer to import than all of this

if TYPE_CHECKING:
    from .api import (
        Compiled,
        Options,
        check,
        compile_plan,
        convert,
        diff,
        explain,
        inspect,
        join,
        load_plan,
        merge,
        merge_plan,
        plan_of,
        run,
        spectrum,
    )
    from .core.errors import AssertionFailed, BudgetError, PlanError, Problems, StorageError, SurgeryError
    from .core.notes import Note
    from .execute.observers import Observer
    from .execute.report import Report
    from .mergekit.options import MergeOptions
    from .reports.compare import Change, Difference
    from .reports.explain import Explanation
    from .reports.spectrum import ModuleSpectrum, Spectrum
    from .reports.survey import CheckpointInfo, TensorInfo
    from .session.arrays import merge_tensors
    from .session.batch import batch
    from .session.ledger import BatchReport, JobReport
    from .session.memory import apply
    from .storage.base import Checkpoint
    from .storage.flax.trees import from_flax, to_flax

    __version__: str

__all__ = [
    "AssertionFailed",
    "BatchReport",
    "BudgetError",
    "Change",
    "Checkpoint",
    "CheckpointInfo",
    "Compiled",
    "Difference",
    "Explanation",
    "JobReport",
    "MergeOptions",
    "ModuleSpectrum",
    "Note",
    "Observer",
    "Options",
    "PlanError",
    "Problems",
    "Report",
    "Spectrum",
    "StorageError",
    "SurgeryError",
    "TensorInfo",
    "__version__",
    "apply",
    "batch",
    "check",
    "compile_plan",
    "convert",
    "diff",
    "explain",
    "from_flax",
    "inspect",
    "join",
    "load_plan",
    "merge",
    "merge_plan",
    "merge_tensors",
    "plan_of",
    "run",
    "spectrum",
    "to_flax",
]

_HOMES = {
    "api": "Compiled Options check compile_plan convert diff explain inspect join load_plan merge merge_plan plan_of "
    "run spectrum",
    "session.arrays": "merge_tensors",
    "session.batch": "batch",
    "session.ledger": "BatchReport JobReport",
    "core.errors": "AssertionFailed BudgetError PlanError Problems StorageError SurgeryError",
    "core.notes": "Note",
    "reports.compare": "Change Difference",
    "reports.explain": "Explanation",
    "execute.observers": "Observer",
    "execute.report": "Report",
    "mergekit.options": "MergeOptions",
    "reports.spectrum": "ModuleSpectrum Spectrum",
    "reports.survey": "CheckpointInfo TensorInfo",
    "session.memory": "apply",
    "storage.base": "Checkpoint",
    "storage.flax.trees": "from_flax to_flax",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("surgery_jax")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
