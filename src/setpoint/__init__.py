"""setpoint: ask for a sparsity, and training hits it, in one run."""

from setpoint import functional, methods, transforms
from setpoint.budget import Schedule, Target
from setpoint.deploy import compact, export, load, load_model, save
from setpoint.report import Report
from setpoint.sparsifier import Sparsifier
from setpoint.unfinished import UnfinishedRunWarning

__all__ = [
    "Report",
    "Schedule",
    "Sparsifier",
    "Target",
    "UnfinishedRunWarning",
    "compact",
    "export",
    "functional",
    "load",
    "load_model",
    "methods",
    "save",
    "transforms",
]
