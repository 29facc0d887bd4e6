"""Sparse kernels for the layers of trained models, where they are measured to be faster."""

from setpoint.deploy.kernels.choose import use_sparse_kernels
from setpoint.deploy.kernels.modules import SparseLinear, SparsePointwise
from setpoint.deploy.kernels.race import Race
from setpoint.deploy.kernels.report import KernelReport, LayerKernels

__all__ = ["KernelReport", "LayerKernels", "Race", "SparseLinear", "SparsePointwise", "use_sparse_kernels"]
