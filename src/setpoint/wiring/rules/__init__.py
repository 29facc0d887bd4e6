"""What each operator does to axes. Importing this package fills the table of rules."""

from setpoint.wiring.rules import (
    attention,
    convolutions,
    elementwise,
    norms,
    products,
    recurrent,
    reductions,
    shapes,
    slicing,
)

__all__ = [
    "attention",
    "convolutions",
    "elementwise",
    "norms",
    "products",
    "recurrent",
    "reductions",
    "shapes",
    "slicing",
]
