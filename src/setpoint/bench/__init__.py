"""What the library costs, as ratios measured in one run: `setpoint bench` and the scripts in `benchmarks/`."""

from setpoint.bench.machine import describe
from setpoint.bench.tables import page, ratios_tables
from setpoint.bench.work import Pace, Row, Work, in_turns

__all__ = ["Pace", "Row", "Work", "describe", "in_turns", "page", "ratios_tables"]
