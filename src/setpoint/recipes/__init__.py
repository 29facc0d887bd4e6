"""Models, data and the loop behind `setpoint train`."""

from setpoint.recipes.config import TrainConfig
from setpoint.recipes.config_file import dump_config, load_config
from setpoint.recipes.defaults import resolve
from setpoint.recipes.loop import train_run
from setpoint.recipes.progress import EpochRow, Progress
from setpoint.recipes.result import RunResult, read_result

__all__ = [
    "EpochRow",
    "Progress",
    "RunResult",
    "TrainConfig",
    "dump_config",
    "load_config",
    "read_result",
    "resolve",
    "train_run",
]
