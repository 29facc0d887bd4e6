"""setpoint: ask for a sparsity, and training hits it, in one run."""

from setpoint import functional, methods
from setpoint.budget import Schedule, Target
from setpoint.deploy import load, save
from setpoint.report import Report
from setpoint.sparsifier import Sparsifier

__all__ = ["Report", "Schedule", "Sparsifier", "Target", "functional", "load", "methods", "save"]
