"""The mathematics, as functions of tensors. Nothing here knows of modules, layers or training."""

from setpoint.functional.budget import project_budget
from setpoint.functional.envelope import group_envelope
from setpoint.functional.envelope_prox import prox_group_envelope
from setpoint.functional.gsp import project_gsp
from setpoint.functional.gsp_fast import WarmStart
from setpoint.functional.hard_concrete import hard_concrete, hard_concrete_open
from setpoint.functional.hoyer import group_hoyer_square, hoyer, hoyer_square
from setpoint.functional.root import Root, monotone_root

__all__ = [
    "Root",
    "WarmStart",
    "group_envelope",
    "group_hoyer_square",
    "hard_concrete",
    "hard_concrete_open",
    "hoyer",
    "hoyer_square",
    "monotone_root",
    "project_budget",
    "project_gsp",
    "prox_group_envelope",
]
