"""What becomes zero together: partitions of parameters into units."""

from setpoint.units.choose import choose
from setpoint.units.coupled import COUPLED, is_coupled, layers_of, wiring_for
from setpoint.units.kinds import NM, Blocks, Slices, Unit, partition, unit_name
from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.member import Member
from setpoint.units.names import named_matrices, plain_name, unwrap
from setpoint.units.partition import Partition, VectorKind
from setpoint.units.positions import Positions
from setpoint.units.select import Patterns, Selection, select

__all__ = [
    "COUPLED",
    "NM",
    "Blocks",
    "Layer",
    "Layout",
    "Member",
    "Part",
    "Partition",
    "Patterns",
    "Positions",
    "Selection",
    "Slices",
    "Unit",
    "VectorKind",
    "choose",
    "is_coupled",
    "layers_of",
    "named_matrices",
    "partition",
    "plain_name",
    "select",
    "unit_name",
    "unwrap",
    "wiring_for",
]
