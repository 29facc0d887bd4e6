"""What came of a run, to read and to look at."""

from setpoint.reporting.compare import compare_plot, compare_table, group_runs
from setpoint.reporting.plots import layers_plot, training_plot
from setpoint.reporting.tables import run_tables
from setpoint.reporting.weights import first_layer_plot

__all__ = [
    "compare_plot",
    "compare_table",
    "first_layer_plot",
    "group_runs",
    "layers_plot",
    "run_tables",
    "training_plot",
]
