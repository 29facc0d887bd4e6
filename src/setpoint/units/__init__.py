"""What becomes zero together: partitions of parameters into units."""

from setpoint.units.layer import Layer, Part
from setpoint.units.layout import Layout
from setpoint.units.names import plain_name, unwrap
from setpoint.units.partition import NM, Blocks, Partition, Slices, Unit, VectorKind, partition, unit_name
from setpoint.units.select import Patterns, Selection, select

__all__ = [
    "NM",
    "Blocks",
    "Layer",
    "Layout",
    "Part",
    "Partition",
    "Patterns",
    "Selection",
    "Slices",
    "Unit",
    "VectorKind",
    "partition",
    "plain_name",
    "select",
    "unit_name",
    "unwrap",
]
