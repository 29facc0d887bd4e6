"""The mathematics, as functions of tensors. Nothing here knows of modules, layers or training."""

from setpoint.functional.budget import project_budget
from setpoint.functional.gsp import project_gsp
from setpoint.functional.hoyer import group_hoyer_square, hoyer, hoyer_square
from setpoint.functional.root import Root, monotone_root

__all__ = [
    "Root",
    "group_hoyer_square",
    "hoyer",
    "hoyer_square",
    "monotone_root",
    "project_budget",
    "project_gsp",
]
