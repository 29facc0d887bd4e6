"""Costs, targets, scopes and schedules: who may keep how much, and when."""

from setpoint.budget.budget import Budget, in_budgets
from setpoint.budget.costs import costs_of
from setpoint.budget.erk import erk_densities
from setpoint.budget.flops import count_flops, flops_of_widths, flops_per_entry
from setpoint.budget.latency import LatencyOfWidths
from setpoint.budget.schedule import Phase, Schedule, Shape, Timeline
from setpoint.budget.scope import Scope, allocate, as_scope
from setpoint.budget.shares import unit_costs
from setpoint.budget.target import Cost, Target
from setpoint.budget.whole import SeparateCosts, WholeCost, bytes_of_widths, params_of_widths

__all__ = [
    "Budget",
    "Cost",
    "LatencyOfWidths",
    "Phase",
    "Schedule",
    "Scope",
    "SeparateCosts",
    "Shape",
    "Target",
    "Timeline",
    "WholeCost",
    "allocate",
    "as_scope",
    "bytes_of_widths",
    "costs_of",
    "count_flops",
    "erk_densities",
    "flops_of_widths",
    "flops_per_entry",
    "in_budgets",
    "params_of_widths",
    "unit_costs",
]
