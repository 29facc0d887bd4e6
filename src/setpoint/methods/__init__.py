"""How training gets to the budget: one file a method."""

from setpoint.methods.base import Method, Units
from setpoint.methods.evolutionary import SparseEvolutionaryTraining
from setpoint.methods.gsp import GroupedSparseProjection
from setpoint.methods.hoyer import DeepHoyer
from setpoint.methods.l0 import ConstrainedL0
from setpoint.methods.magnitude import Magnitude
from setpoint.methods.registry import make_method, method_names
from setpoint.methods.rigl import RigL
from setpoint.methods.static import Static
from setpoint.methods.wgsef import GroupSparseEnvelope

__all__ = [
    "ConstrainedL0",
    "DeepHoyer",
    "GroupSparseEnvelope",
    "GroupedSparseProjection",
    "Magnitude",
    "Method",
    "RigL",
    "SparseEvolutionaryTraining",
    "Static",
    "Units",
    "make_method",
    "method_names",
]
