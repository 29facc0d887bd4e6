"""What becomes zero together: partitions of parameters into units."""

from setpoint.units.layout import Layout
from setpoint.units.partition import NM, Blocks, Partition, Slices, Unit, VectorKind, partition, unit_name
from setpoint.units.select import Layer, Patterns, Selection, select, unwrap

__all__ = [
    "NM",
    "Blocks",
    "Layer",
    "Layout",
    "Partition",
    "Patterns",
    "Selection",
    "Slices",
    "Unit",
    "VectorKind",
    "partition",
    "select",
    "unit_name",
    "unwrap",
]
