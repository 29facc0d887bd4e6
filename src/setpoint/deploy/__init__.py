"""A trained model leaves the run: saved small, loaded whole."""

from setpoint.deploy.archive import load, load_model, read_metadata, save
from setpoint.deploy.compact import compact
from setpoint.deploy.container import ArchiveError
from setpoint.deploy.export import export
from setpoint.deploy.kernels import KernelReport, use_sparse_kernels

__all__ = [
    "ArchiveError",
    "KernelReport",
    "compact",
    "export",
    "load",
    "load_model",
    "read_metadata",
    "save",
    "use_sparse_kernels",
]
