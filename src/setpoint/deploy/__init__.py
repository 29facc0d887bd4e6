"""A trained model leaves the run: saved small, loaded whole."""

from setpoint.deploy.archive import load, load_model, read_metadata, save
from setpoint.deploy.compact import compact
from setpoint.deploy.container import ArchiveError
from setpoint.deploy.export import export

__all__ = ["ArchiveError", "compact", "export", "load", "load_model", "read_metadata", "save"]
