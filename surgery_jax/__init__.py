"""Checkpoint surgery: declarative plans that edit the weights of neural networks, checked whole, compiled and streamed."""

from .api import Compiled, Options, check, compile_plan, load_plan, plan_of, run
from .core.errors import AssertionFailed, BudgetError, PlanError, Problems, StorageError, SurgeryError

__version__ = "0.1.0"

__all__ = [
    "AssertionFailed",
    "BudgetError",
    "Compiled",
    "Options",
    "PlanError",
    "Problems",
    "StorageError",
    "SurgeryError",
    "check",
    "compile_plan",
    "load_plan",
    "plan_of",
    "run",
]
