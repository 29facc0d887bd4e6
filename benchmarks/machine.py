"""The machine that figures were measured on, as `setpoint bench` describes it too."""

from setpoint.bench.machine import describe

__all__ = ["describe"]
